#include "tokenizer_decoder.h"

#include <string.h>

#include "failure.h"
#include "tokenizer_bpe.h"
#include "utf8.h"

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

llm_status pieces_add(Pieces *pieces, const char *text, size_t size, Memory *memory,
                      llm_error *error) {
    TRY(buffer_append(&pieces->text, text, size, memory, error));
    TRY(buffer_reserve(&pieces->ends, 1, sizeof(size_t), memory, error));
    ((size_t *)pieces->ends.items)[pieces->ends.count++] = pieces->text.count;
    return LLM_OK;
}

/* ---- Steps on all tokens at once ---- */

/* The byte that a character spells at byte level, or -1. */
static int byte_of(uint32_t code_point) {
    if (code_point >= 0x144)
        return -1;
    if (code_point < 0x100)
        return byte_level_character((unsigned char)code_point) == code_point ? (int)code_point : -1;
    return code_point <= 0x120   ? (int)code_point - 0x100
           : code_point == 0x143 ? 0xad
                                 : (int)code_point - 0x121 + 0x7f;
}

/* Append the bytes that a token spells, or its text if a character of it spells none. */
static llm_status append_bytes(const char *text, size_t size, Buffer *bytes, Memory *memory,
                               llm_error *error) {
    const size_t start = bytes->count;
    TRY(buffer_reserve(bytes, size, 1, memory, error));
    for (size_t at = 0; at < size;) {
        uint32_t code_point;
        at += utf8_read(text + at, size - at, &code_point);
        const int byte = byte_of(code_point);
        if (byte < 0) {
            bytes->count = start;
            return buffer_append(bytes, text, size, memory, error);
        }
        ((char *)bytes->items)[bytes->count++] = (char)byte;
    }
    return LLM_OK;
}

/* Append bytes as text, with U+FFFD for what isn't UTF-8. */
static llm_status append_mended(const char *bytes, size_t size, Buffer *text, Memory *memory,
                                llm_error *error) {
    for (size_t at = 0, taken; at < size; at += taken) {
        uint32_t code_point;
        taken = utf8_read(bytes + at, size - at, &code_point);
        if (code_point == UTF8_INVALID)
            TRY(buffer_append(text, replacement, sizeof replacement - 1, memory, error));
        else
            TRY(buffer_append(text, bytes + at, taken, memory, error));
    }
    return LLM_OK;
}

static llm_status decode_byte_level(const Pieces *in, Pieces *out, Memory *memory,
                                    llm_error *error) {
    const char *text = in->text.items;
    const size_t *ends = in->ends.items;
    Buffer *bytes = &out->text;
    for (size_t i = 0, start = 0; i < in->ends.count; start = ends[i++])
        TRY(append_bytes(text + start, ends[i] - start, bytes, memory, error));
    /* Bytes that aren't UTF-8 are mended behind the others, then moved over them. */
    const size_t size = bytes->count;
    TRY(buffer_reserve(bytes, size * (sizeof replacement - 1), 1, memory, error));
    TRY(append_mended(bytes->items, size, bytes, memory, error));
    bytes->count -= size;
    if (bytes->count)
        memmove(bytes->items, (char *)bytes->items + size, bytes->count);
    return pieces_add(out, NULL, 0, memory, error);
}

/* The byte that <0x00> names, or -1. */
static int fallback_byte(const char *text, size_t size) {
    int byte = 0;
    if (size != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    for (int i = 3; i < 5; i++) {
        const char c = text[i], lower = (char)(c | 0x20);
        if (c >= '0' && c <= '9')
            byte = byte << 4 | (c - '0');
        else if (lower >= 'a' && lower <= 'f')
            byte = byte << 4 | (lower - 'a' + 10);
        else
            return -1;
    }
    return byte;
}

/* End a run of bytes, which begins at `start`: text if it is UTF-8, or else U+FFFD for each byte.
 */
static llm_status end_run(Pieces *out, size_t start, Memory *memory, llm_error *error) {
    const size_t size = out->text.count - start;
    bool is_valid = true;
    if (size == 0)
        return LLM_OK;
    const char *bytes = (char *)out->text.items + start;
    for (size_t at = 0; at < size && is_valid;) {
        uint32_t code_point;
        at += utf8_read(bytes + at, size - at, &code_point);
        is_valid = code_point != UTF8_INVALID;
    }
    if (is_valid)
        return pieces_add(out, NULL, 0, memory, error);
    out->text.count = start;
    for (size_t i = 0; i < size; i++)
        TRY(pieces_add(out, replacement, sizeof replacement - 1, memory, error));
    return LLM_OK;
}

static llm_status decode_byte_fallback(const Pieces *in, Pieces *out, Memory *memory,
                                       llm_error *error) {
    const char *text = in->text.items;
    const size_t *ends = in->ends.items;
    size_t run = 0;
    for (size_t i = 0, start = 0; i < in->ends.count; start = ends[i++]) {
        const size_t size = ends[i] - start;
        const int byte = fallback_byte(text + start, size);
        if (byte >= 0) {
            const char c = (char)byte;
            TRY(buffer_append(&out->text, &c, 1, memory, error));
            continue;
        }
        TRY(end_run(out, run, memory, error));
        TRY(pieces_add(out, text + start, size, memory, error));
        run = out->text.count;
    }
    return end_run(out, run, memory, error);
}

/* ---- Steps on each token ---- */

static llm_status replace(const DecoderStep *step, const char *text, size_t size, Buffer *out,
                          RegexScratch *scratch, llm_error *error) {
    for (size_t at = 0; at < size;) {
        Span found;
        TRY(pattern_find(&step->pattern, text, size, at, scratch, &found, error));
        TRY(buffer_append(out, text + at, found.start - at, scratch->memory, error));
        if (found.start < size)
            TRY(buffer_append(out, step->content, step->content_size, scratch->memory, error));
        at = found.end;
    }
    return LLM_OK;
}

static llm_status strip(const DecoderStep *step, const char *text, size_t size, Buffer *out,
                        RegexScratch *scratch, llm_error *error) {
    const char *taken = step->pattern.text;
    const size_t length = step->pattern.size;
    for (size_t i = 0; i < step->from_start && size >= length; i++) {
        if (memcmp(text, taken, length) != 0)
            break;
        text += length;
        size -= length;
    }
    for (size_t i = 0; i < step->from_end && size >= length; i++) {
        if (memcmp(text + size - length, taken, length) != 0)
            break;
        size -= length;
    }
    return buffer_append(out, text, size, scratch->memory, error);
}

static llm_status decode_each(const DecoderStep *step, const Pieces *in, Pieces *out,
                              RegexScratch *scratch, llm_error *error) {
    const char *text = in->text.items;
    const size_t *ends = in->ends.items;
    DecoderStep of_first = *step;
    if (step->drops_first)
        of_first.content_size = 0;
    for (size_t i = 0, start = 0; i < in->ends.count; start = ends[i++]) {
        const size_t size = ends[i] - start;
        if (step->kind == DECODE_STRIP)
            TRY(strip(step, text + start, size, &out->text, scratch, error));
        else
            TRY(replace(i == 0 ? &of_first : step, text + start, size, &out->text, scratch, error));
        TRY(pieces_add(out, NULL, 0, scratch->memory, error));
    }
    return LLM_OK;
}

/* ---- All steps ---- */

bool decoder_takes_as_byte(const Decoder *decoder, const char *text, size_t size) {
    if (fallback_byte(text, size) >= 0)
        for (size_t i = 0; i < decoder->count; i++)
            if (decoder->steps[i].kind == DECODE_BYTE_FALLBACK)
                return true;
    return false;
}

static llm_status join_with_spaces(const Pieces *in, Pieces *out, Memory *memory,
                                   llm_error *error) {
    const char *text = in->text.items;
    const size_t *ends = in->ends.items;
    for (size_t i = 0, start = 0; i < in->ends.count; start = ends[i++]) {
        if (i > 0)
            TRY(buffer_append(&out->text, " ", 1, memory, error));
        TRY(buffer_append(&out->text, text + start, ends[i] - start, memory, error));
    }
    return LLM_OK;
}

static llm_status run_step(const DecoderStep *step, Pieces *in, Pieces *out, RegexScratch *scratch,
                           llm_error *error) {
    Memory *memory = scratch->memory;
    switch (step->kind) {
    case DECODE_BYTE_LEVEL:
        return decode_byte_level(in, out, memory, error);
    case DECODE_BYTE_FALLBACK:
        return decode_byte_fallback(in, out, memory, error);
    case DECODE_FUSE:
        return pieces_add(out, in->text.items, in->text.count, memory, error);
    default:
        return decode_each(step, in, out, scratch, error);
    }
}

llm_status decoder_run(const Decoder *decoder, Pieces pieces[2], RegexScratch *scratch,
                       const char **text, size_t *size, llm_error *error) {
    Pieces *in = &pieces[0], *out = &pieces[1];
    const size_t steps = decoder->is_missing ? 1 : decoder->count;
    TRY(buffer_reserve(&in->text, 0, 1, scratch->memory, error));
    TRY(buffer_reserve(&out->text, 0, 1, scratch->memory, error));
    for (size_t i = 0; i < steps; i++) {
        out->text.count = out->ends.count = 0;
        if (decoder->is_missing)
            TRY(join_with_spaces(in, out, scratch->memory, error));
        else
            TRY(run_step(&decoder->steps[i], in, out, scratch, error));
        Pieces *swapped = in;
        in = out;
        out = swapped;
    }
    *text = in->text.items;
    *size = in->text.count;
    return LLM_OK;
}

/* ---- Reading ---- */

static llm_status read_count(JsonValue json, const char *name, size_t *count, llm_error *error) {
    int64_t value;
    if (!json_integer(json_member(json, name), &value) || value < 0)
        return fail(error, LLM_DAMAGED, "A decoder of tokenizer.json lacks its %s.", name);
    *count = (size_t)value;
    return LLM_OK;
}

static llm_status read_strip(JsonValue json, Memory *memory, DecoderStep *step, llm_error *error) {
    step->kind = DECODE_STRIP;
    TRY(read_count(json, "start", &step->from_start, error));
    TRY(read_count(json, "stop", &step->from_end, error));
    TRY(read_text(json_member(json, "content"), memory, &step->pattern.text, &step->pattern.size,
                  error));
    return step->pattern.size
               ? LLM_OK
               : fail(error, LLM_DAMAGED, "A decoder of tokenizer.json strips nothing.");
}

static llm_status read_metaspace(JsonValue json, Memory *memory, DecoderStep *step,
                                 llm_error *error) {
    step->kind = DECODE_METASPACE;
    step->content = " ";
    step->content_size = 1;
    step->drops_first = read_prepend_scheme(json) != PREPEND_NEVER;
    TRY(read_text(json_member(json, "replacement"), memory, &step->pattern.text,
                  &step->pattern.size, error));
    return step->pattern.size
               ? LLM_OK
               : fail(error, LLM_DAMAGED, "The tokenizer's mark for spaces is empty.");
}

llm_status decoder_read(JsonValue json, Memory *memory, Decoder *decoder, llm_error *error) {
    const JsonValue type = json_member(json, "type");
    if (json_type(json) == JSON_ABSENT || json_type(json) == JSON_NULL) {
        decoder->is_missing = true;
        return LLM_OK;
    }
    if (json_string_is(type, "Sequence")) {
        JsonItems items = json_items(json_member(json, "decoders"));
        while (json_next(&items))
            TRY(decoder_read(items.value, memory, decoder, error));
        return LLM_OK;
    }
    if (decoder->count == MOST_DECODERS)
        return fail(error, LLM_UNSUPPORTED, "The tokenizer has too many decoders.");
    DecoderStep *step = &decoder->steps[decoder->count++];
    if (json_string_is(type, "Strip"))
        return read_strip(json, memory, step, error);
    if (json_string_is(type, "Metaspace"))
        return read_metaspace(json, memory, step, error);
    if (json_string_is(type, "Replace")) {
        step->kind = DECODE_REPLACE;
        TRY(pattern_read(json_member(json, "pattern"), memory, &step->pattern, error));
        return read_text(json_member(json, "content"), memory, &step->content, &step->content_size,
                         error);
    }
    static const struct {
        const char *name;
        DecoderKind kind;
    } plain[] = {{"ByteLevel", DECODE_BYTE_LEVEL},
                 {"ByteFallback", DECODE_BYTE_FALLBACK},
                 {"Fuse", DECODE_FUSE}};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (json_string_is(type, plain[i].name)) {
            step->kind = plain[i].kind;
            return LLM_OK;
        }
    return fail(error, LLM_UNSUPPORTED,
                "This bundle's tokenizer has a decoder that the native runtime doesn't have: use "
                "the Python runtime, or token ids.");
}
