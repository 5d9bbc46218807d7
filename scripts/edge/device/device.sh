#!/bin/sh
# What runs on the device: sh device.sh COMMAND ROOT [ARGUMENT...]. docs/edge.md describes it.
#
#   ROOT/current, ROOT/previous   links to what is served, and what was before
#   ROOT/versions/ID/             packages, unpacked
#   ROOT/incoming/ID/             a package that is on its way, or was cut off
#   ROOT/keys/                    allowed_signers, age-identity: who may sign, and what decrypts
#
# It needs POSIX sh, awk, tar, flock, and coreutils or busybox. A message is one sentence, and the status of
# a command that failed is 1. Whatever ends it, `current` is a whole version that was checked.
set -eu
export LC_ALL=C
umask 022

fail() {
    echo "$*" >&2
    exit 1
}

# One line for each thing that the other side must know before it sends anything.
probe() {
    place=$root
    while [ ! -d "$place" ]; do place=$(dirname "$place"); done
    [ -w "$place" ] || fail "$(id -un) may not write to $place: log in as another user, or give --sudo."
    echo "machine $(uname -m)"
    if command -v rsync >/dev/null; then echo "rsync yes"; else echo "rsync no"; fi
    echo "current $(version_of current)"
}

# Make room for a package whose SHA256SUMS come in; say how much space there is and which files it
# lacks. With `link`, files that an installed version has are linked.
offer() {
    id=$1
    clear_incoming "$id"
    mkdir -p versions "incoming/$id"
    cd "incoming/$id"
    rm -f SHA256SUMS.sig
    cat >SHA256SUMS.new
    mv SHA256SUMS.new SHA256SUMS
    echo "free $(df -Pk . | awk 'NR == 2 { print $4 }')"
    sha256sum -c SHA256SUMS 2>/dev/null | sed -n 's/: FAILED.*//p' | while IFS= read -r path; do
        [ "${2-}" = link ] && link_installed "$path" || echo "send $path"
    done
}

link_installed() {
    sum=$(awk -v path="$1" 'substr($0, 67) == path { print substr($0, 1, 64) }' SHA256SUMS)
    for version in "$root/current" "$root/previous"; do
        [ -f "$version/SHA256SUMS" ] || continue
        found=$(awk -v sum="$sum" 'substr($0, 1, 64) == sum { print substr($0, 67); exit }' \
            "$version/SHA256SUMS")
        [ -f "$version/${found:-/}" ] || continue
        mkdir -p "$(dirname "$1")"
        rm -f "$1"
        ln "$version/$found" "$1" && return
    done
    return 1
}

# Files of a package from a tar archive.
receive() {
    tar -x -o -f - -C "incoming/$1"
}

# A package is going to be complete some other time: free its space.
abandon() {
    rm -rf "incoming/$1"
}

# Check what came, try it, and switch to it.
install() {
    id=$1
    [ -d "incoming/$id" ] || fail "There is no package $id in $root/incoming: deploy it again."
    trap 'rm -rf "$root/incoming/$id"' EXIT
    cd "incoming/$id"
    check_signature
    decrypt_files
    check_files
    chmod 755 bin/*
    try_out
    # On the disk before it is switched to: devices lose power.
    find . -exec sync {} +
    cd "$root"
    place=$id
    while [ -e "versions/$place" ]; do place=$place+; done
    mv "incoming/$id" "versions/$place"
    switch_to "$place" "$id"
    for version in versions/*; do
        case $version in
        "$(readlink current)" | "$(readlink previous || :)") ;;
        *) rm -rf "$version" ;;
        esac
    done
}

# The same for a version that dpkg put there.
adopt() {
    cd "versions/$1"
    check_files
    try_out
    cd "$root"
    switch_to "$1" "$1"
}

# A damaged version that is replaced by the same isn't one to go back to.
switch_to() {
    if [ -d current/ ] && [ "$(version_of current)" != "$2" ]; then
        point previous "$(readlink current)"
    fi
    [ -d previous/ ] || rm -f previous
    point current "versions/$1"
    restart_service
}

check_signature() {
    signers=$root/keys/allowed_signers
    [ -f "$signers" ] || return 0
    [ -f SHA256SUMS.sig ] ||
        fail "The package isn't signed, and this device takes signed ones only: pack it with --sign."
    command -v ssh-keygen >/dev/null ||
        fail "There is no ssh-keygen to check the signature with: install openssh-client."
    signer=$(ssh-keygen -Y find-principals -s SHA256SUMS.sig -f "$signers" 2>/dev/null) &&
        ssh-keygen -Y verify -n export-llm -s SHA256SUMS.sig -f "$signers" \
            -I "$(echo "$signer" | head -n 1)" <SHA256SUMS >/dev/null 2>&1 ||
        fail "The package's signature is not of a key in $signers: pack it with --sign and such a key."
}

# Encrypted files are those with .age behind their names; checksums are of what is in them.
decrypt_files() {
    identity=$root/keys/age-identity
    find . -name '*.age' | while IFS= read -r file; do
        command -v age >/dev/null ||
            fail "The package is encrypted, and there is no age to decrypt it: install Debian's age."
        age -d -i "$identity" -o "${file%.age}" "$file" 2>/dev/null ||
            fail "${file#./} can't be decrypted with $identity: pack it with --encrypt for that key."
        rm "$file"
    done
}

# Every file that is listed, as it is listed, and nothing else.
check_files() {
    wrong=$(sha256sum -c SHA256SUMS 2>/dev/null | sed -n 's/: FAILED.*//p' | head -n 1)
    [ -z "$wrong" ] || fail "$wrong isn't what the package says (its checksum differs): deploy it again."
    other=$(find . ! -type d | sed 's|^\./||' | awk '
        NR == FNR { listed[substr($0, 67)]; next }
        !($0 in listed) && $0 !~ /^SHA256SUMS(\.sig)?$/ { print; exit }' SHA256SUMS -)
    links=$(find . ! -type f ! -type d | head -n 1)
    [ -z "$other$links" ] || fail "${other:-$links} doesn't belong to the package: deploy it again."
}

# Whatever is missing on this device shows before anything is switched. The lock isn't for what is
# started: busybox's timeout stays behind.
try_out() {
    answer=$(bin/llm try 2>&1 </dev/null 9>&-) ||
        fail "The package doesn't run here ($(echo "$answer" | tail -n 1)): what was served still is."
}

version_of() {
    if [ -f "$root/$1/package.json" ]; then
        sums=$(sha256sum <"$root/$1/SHA256SUMS" | cut -c 1-12)
        version=$(sed -n 's/^ *"version": "\(.*\)",\{0,1\}$/\1/p' "$root/$1/package.json")
        echo "$version-$sums"
    fi
}

# A link is replaced by renaming: there is never none.
point() {
    rm -f "$1.new"
    ln -s "$2" "$1.new"
    mv -T "$1.new" "$1"
}

clear_incoming() {
    for package in incoming/*; do
        [ "$package" = "incoming/$1" ] || rm -rf "$package"
    done
}

# Back to the previous version; once more, and it is undone.
rollback() {
    [ -d previous/ ] || fail "There is no previous version in $root: deploy one."
    here=$(readlink current)
    there=$(readlink previous)
    (cd "$there" && check_files)
    point previous "$here"
    point current "$there"
    restart_service
    echo "current $(version_of current)"
}

status() {
    echo "current $(version_of current)"
    echo "previous $(version_of previous)"
    echo "free $(df -Pk . | awk 'NR == 2 { print $4 }')"
    if has_systemd; then
        echo "service $(systemctl is-active "$unit.service" || :)"
        echo "socket $(systemctl is-active "$unit.socket" || :)"
    fi
}

has_systemd() {
    [ -d /run/systemd/system ]
}

# The units of the current version, as they are for this ROOT, into a folder.
write_units() {
    for template in current/systemd/*; do
        name=$unit.${template##*.}
        sed "s|@ROOT@|$root|g; s|@UNIT@|$unit|g" "$template" >"$1/$name.new"
        mv "$1/$name.new" "$1/$name"
    done
}

start() {
    [ -d current/ ] || fail "There is no package in $root: deploy one first."
    has_systemd || fail "There is no systemd here: give --foreground."
    write_units /etc/systemd/system
    systemctl daemon-reload
    systemctl enable --quiet "$unit.socket" "$unit.service"
    systemctl restart "$unit.socket" "$unit.service"
}

stop() {
    systemctl disable --quiet --now "$unit.socket" "$unit.service"
}

# Before dpkg takes its files away.
remove() {
    if has_systemd && [ -f "/etc/systemd/system/$unit.service" ]; then
        stop
        rm "/etc/systemd/system/$unit.socket" "/etc/systemd/system/$unit.service"
    fi
    rm -rf current previous incoming lock
}

# Limits of memory belong to a version. Whoever connects meanwhile waits in the socket's queue.
restart_service() {
    if has_systemd && [ -f "/etc/systemd/system/$unit.service" ]; then
        write_units /etc/systemd/system
        systemctl daemon-reload
        systemctl try-restart "$unit.service"
    fi
}

# Without systemd: until it is interrupted, with what limit of memory a shell can set.
foreground() {
    [ -d current/ ] || fail "There is no package in $root: deploy one first."
    limit=$(sed -n 's/^ *"memory_bytes": \([0-9]*\).*/\1/p' current/package.json)
    ulimit -d "$((limit / 1024))"
    exec current/bin/llm serve "$root/socket"
}

command=$1
root=$2
shift 2
unit=$(basename "$root")
case $command in
probe) probe ;;
offer | abandon | install | adopt | rollback | start | stop | remove)
    mkdir -p "$root"
    cd "$root"
    exec 9>lock
    flock -n 9 || fail "Another deployment to $root is under way: wait for it."
    "$command" "$@"
    ;;
receive | status | write_units | foreground)
    # No lock: a transfer may be cut off and never come back.
    cd "$root" 2>/dev/null || fail "There is nothing in $root: deploy a package first."
    "$command" "$@"
    ;;
*) fail "There is no command $command: docs/edge.md has them." ;;
esac
