"""Signing and encrypting packages, with formats that others keep: SSH signatures and age."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.edge.contents import Files
from scripts.edge.programs import run_program

SUFFIX = ".age"
NAMESPACE = "export-llm"


def sign(content: bytes, key: Path) -> bytes:
    """An SSH signature (PROTOCOL.sshsig), made with a private key or one that ssh-agent has."""
    return run_program(
        *("ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", key),
        package="openssh-client",
        purpose="Signing",
        stdin=content,
    )


@contextmanager
def encrypted(files: Files, recipient: str, folder: Path) -> Iterator[Files]:
    """Yield ``files`` with those of the bundle encrypted, in a temporary directory in ``folder``.

    ``recipient`` is what age takes: "age1..." or an SSH public key, or a file of them.
    """
    whom = ("-R", recipient) if Path(recipient).is_file() else ("-r", recipient)
    with TemporaryDirectory(prefix=".encrypting-", dir=folder) as temporary:
        sealed: Files = {}
        for number, (name, content) in enumerate(sorted(files.items())):
            if not name.startswith("bundle/"):
                sealed[name] = content
                continue
            target = Path(temporary) / str(number)
            command = ("age", "--encrypt", *whom, "--output", target)
            if isinstance(content, bytes):
                run_program(*command, package="age", purpose="Encrypting", stdin=content)
            else:
                run_program(*command, content, package="age", purpose="Encrypting")
            sealed[name + SUFFIX] = target
        yield sealed
