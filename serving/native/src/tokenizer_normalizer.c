#include "tokenizer_normalizer.h"

#include "failure.h"
#include "unicode_nfc.h"

static llm_status replace(const NormalizerStep *step, const char *text, size_t size, Buffer *out,
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

llm_status normalizer_run(const Normalizer *normalizer, const char **text, size_t *size,
                          NormalizerScratch *scratch, RegexScratch *regex_scratch,
                          llm_error *error) {
    Memory *memory = regex_scratch->memory;
    for (size_t i = 0; i < normalizer->count && *size > 0; i++) {
        const NormalizerStep *step = &normalizer->steps[i];
        Buffer *out = &scratch->texts[i % 2];
        if (step->kind == NORMALIZE_NFC && nfc_stable_size(*text, *size) == *size)
            continue;
        out->count = 0;
        switch (step->kind) {
        case NORMALIZE_NFC:
            TRY(nfc_append(*text, *size, &scratch->points, out, memory, error));
            break;
        case NORMALIZE_PREPEND:
            TRY(buffer_append(out, step->content, step->content_size, memory, error));
            TRY(buffer_append(out, *text, *size, memory, error));
            break;
        case NORMALIZE_REPLACE:
            TRY(replace(step, *text, *size, out, regex_scratch, error));
            break;
        }
        *text = out->items;
        *size = out->count;
    }
    return LLM_OK;
}

llm_status normalizer_read(JsonValue json, Memory *memory, Normalizer *normalizer,
                           llm_error *error) {
    const JsonValue type = json_member(json, "type");
    if (json_type(json) == JSON_ABSENT || json_type(json) == JSON_NULL)
        return LLM_OK;
    if (json_string_is(type, "Sequence")) {
        JsonItems items = json_items(json_member(json, "normalizers"));
        while (json_next(&items))
            if (json_string_is(json_member(items.value, "type"), "Sequence"))
                return fail(error, LLM_UNSUPPORTED, "The tokenizer nests its normalizers.");
            else
                TRY(normalizer_read(items.value, memory, normalizer, error));
        return LLM_OK;
    }
    if (normalizer->count == MOST_NORMALIZERS)
        return fail(error, LLM_UNSUPPORTED, "The tokenizer has too many normalizers.");
    NormalizerStep *step = &normalizer->steps[normalizer->count++];
    if (json_string_is(type, "NFC")) {
        step->kind = NORMALIZE_NFC;
        return LLM_OK;
    }
    if (json_string_is(type, "Prepend")) {
        step->kind = NORMALIZE_PREPEND;
        return read_text(json_member(json, "prepend"), memory, &step->content, &step->content_size,
                         error);
    }
    if (json_string_is(type, "Replace")) {
        step->kind = NORMALIZE_REPLACE;
        TRY(pattern_read(json_member(json, "pattern"), memory, &step->pattern, error));
        return read_text(json_member(json, "content"), memory, &step->content, &step->content_size,
                         error);
    }
    return fail(error, LLM_UNSUPPORTED,
                "The native runtime's tokenizer normalizes by NFC, Prepend and Replace only, and "
                "this bundle's has another normalizer: use the Python runtime, or token ids.");
}
