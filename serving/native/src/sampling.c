#include "sampling.h"

#include "failure.h"
#include "selection.h"

#include <math.h>
#include <string.h>

llm_status sampler_create(size_t vocab_size, Memory *memory, Sampler *sampler, llm_error *error) {
    sampler->vocab_size = vocab_size;
    TRY(memory_take(memory, vocab_size, sizeof(float), &sampler->scores, error));
    TRY(memory_take(memory, vocab_size, sizeof(float), &sampler->weights, error));
    TRY(memory_take(memory, vocab_size, sizeof(uint32_t), &sampler->order, error));
    return memory_take(memory, vocab_size, sizeof(uint32_t), &sampler->counts, error);
}

static llm_status require(bool holds, const char *name, const char *rule, llm_error *error) {
    return holds ? LLM_OK
                 : fail(error, LLM_INVALID_ARGUMENT, "%s must be %s: change it.", name, rule);
}

llm_status sampling_check(const llm_sampling *sampling, size_t vocab_size, llm_error *error) {
    const double repetition = sampling->repetition_penalty;
    TRY(require(sampling->temperature >= 0 && isfinite(sampling->temperature), "temperature",
                "a number of at least 0", error));
    TRY(require(sampling->top_p >= 0 && sampling->top_p <= 1, "top_p", "above 0 and at most 1",
                error));
    TRY(require(sampling->min_p >= 0 && sampling->min_p <= 1, "min_p", "from 0 to 1", error));
    TRY(require(repetition >= 0 && isfinite(repetition), "repetition_penalty", "above 0", error));
    TRY(require(fabs(sampling->presence_penalty) <= 2, "presence_penalty", "from -2 to 2", error));
    TRY(require(fabs(sampling->frequency_penalty) <= 2, "frequency_penalty", "from -2 to 2",
                error));
    for (size_t i = 0; i < sampling->bias_count; i++) {
        const llm_token id = sampling->bias_ids[i];
        TRY(require(id >= 0 && (uint64_t)id < vocab_size, "an id of bias_ids",
                    "one of the vocabulary", error));
        TRY(require(fabsf(sampling->bias[i]) <= 100, "a bias", "from -100 to 100", error));
    }
    return LLM_OK;
}

/* Each token that was seen is penalised once, however often it came. */
static void penalize_repetition(const Sampler *sampler, float penalty, Text text) {
    for (size_t i = 0; i < text.count; i++) {
        float *const score = &sampler->scores[text.ids[i]];
        if (sampler->counts[text.ids[i]]++ == 0)
            *score = *score < 0 ? *score * penalty : *score / penalty;
    }
    for (size_t i = 0; i < text.count; i++)
        sampler->counts[text.ids[i]] = 0;
}

static void penalize_generated(const Sampler *sampler, const llm_sampling *sampling, Text text) {
    for (size_t i = text.prompt; i < text.count; i++)
        sampler->counts[text.ids[i]]++;
    for (size_t i = text.prompt; i < text.count; i++) {
        uint32_t *const count = &sampler->counts[text.ids[i]];
        if (*count == 0)
            continue;
        float *const score = &sampler->scores[text.ids[i]];
        *score -= (float)sampling->presence_penalty;
        *score -= (float)sampling->frequency_penalty * (float)*count;
        *count = 0;
    }
}

static void penalize(const Sampler *sampler, const llm_sampling *sampling, Text text) {
    for (size_t i = 0; i < sampling->bias_count; i++)
        sampler->scores[sampling->bias_ids[i]] += sampling->bias[i];
    if (sampling->repetition_penalty != 0 && sampling->repetition_penalty != 1)
        penalize_repetition(sampler, (float)sampling->repetition_penalty, text);
    if (sampling->presence_penalty != 0 || sampling->frequency_penalty != 0)
        penalize_generated(sampler, sampling, text);
}

/* Fill in weights [vocab]: e to the power of how far each score is below the highest, rounded to
 * the nearest float, so that they are the same everywhere. */
static void weigh(const Sampler *sampler) {
    const float highest = sampler->scores[index_of_highest(sampler->scores, sampler->vocab_size)];
    for (size_t i = 0; i < sampler->vocab_size; i++) {
        const float score = sampler->scores[i];
        sampler->weights[i] = score == -INFINITY ? 0 : (float)exp((double)(score - highest));
    }
}

/* A sum of sums of every 64th number. */
typedef struct {
    double lanes[64];
    size_t count;
} Sum;

static void add(Sum *sum, float value) { sum->lanes[sum->count++ % 64] += (double)value; }

static double total(const Sum *sum) {
    double total = 0;
    for (size_t i = 0; i < 64; i++)
        total += sum->lanes[i];
    return total;
}

static float total_of(const float *values, size_t count) {
    Sum sum = {0};
    for (size_t i = 0; i < count; i++)
        add(&sum, values[i]);
    return (float)total(&sum);
}

/* Drop the least likely tokens whose probabilities add up to at most 1 - top_p. Only candidates are
 * sorted: tokens that are dropped whatever the order make up the rest. */
static void keep_top_p(const Sampler *sampler, double top_p) {
    const size_t vocab_size = sampler->vocab_size;
    const size_t highest = index_of_highest(sampler->scores, vocab_size);
    const float surely_dropped = (float)((1 - top_p) / (double)vocab_size);
    weigh(sampler);
    const float all = total_of(sampler->weights, vocab_size);
    Sum rest = {0};
    size_t candidates = 0;
    for (size_t i = 0; i < vocab_size; i++) {
        sampler->weights[i] /= all;
        if (sampler->weights[i] > surely_dropped || i == highest) {
            sampler->order[candidates++] = (uint32_t)i;
        } else {
            add(&rest, sampler->weights[i]);
            sampler->scores[i] = -INFINITY;
        }
    }
    const double dropped = total(&rest);
    double sum = 0;
    sort_ascending(sampler->order, candidates, sampler->scores);
    for (size_t i = 0; i + 1 < candidates; i++) {
        sum += (double)sampler->weights[sampler->order[i]];
        if ((float)(sum + dropped) > (float)(1 - top_p))
            break;
        sampler->scores[sampler->order[i]] = -INFINITY;
    }
}

/* Drop what is less likely than the likeliest token times `min_p`. */
static void keep_min_p(const Sampler *sampler, double min_p) {
    const float highest = sampler->scores[index_of_highest(sampler->scores, sampler->vocab_size)];
    const float surely_dropped = highest + (float)(log(min_p) - 1);
    for (size_t i = 0; i < sampler->vocab_size; i++) {
        float *const score = &sampler->scores[i];
        if (*score < surely_dropped || (float)exp((double)(*score - highest)) < (float)min_p)
            *score = -INFINITY;
    }
}

/* Divide by the temperature, then set what top-k, top-p and min-p drop to -inf, in that order. */
static void warp(const Sampler *sampler, const llm_sampling *sampling) {
    const size_t vocab_size = sampler->vocab_size;
    for (size_t i = 0; i < vocab_size; i++)
        sampler->scores[i] /= (float)sampling->temperature;
    if (sampling->top_k > 0 && sampling->top_k < vocab_size) {
        memcpy(sampler->weights, sampler->scores, vocab_size * sizeof(float));
        const float smallest_kept = kth_highest(sampler->weights, vocab_size, sampling->top_k);
        for (size_t i = 0; i < vocab_size; i++)
            if (sampler->scores[i] < smallest_kept)
                sampler->scores[i] = -INFINITY;
    }
    if (sampling->top_p > 0 && sampling->top_p < 1)
        keep_top_p(sampler, sampling->top_p);
    if (sampling->min_p > 0)
        keep_min_p(sampler, sampling->min_p);
}

/* Draw an id with probability in proportion to its weight. */
static llm_token draw(const Sampler *sampler, Random *random) {
    weigh(sampler);
    double all = 0, sum = 0;
    for (size_t i = 0; i < sampler->vocab_size; i++)
        all += (double)sampler->weights[i];
    const double drawn = random_next(random) * all;
    for (size_t i = 0; i < sampler->vocab_size; i++) {
        sum += (double)sampler->weights[i];
        if (sum > drawn)
            return (llm_token)i;
    }
    return (llm_token)index_of_highest(sampler->scores, sampler->vocab_size);
}

static bool changes_logits(const llm_sampling *sampling) {
    return sampling->bias_count || sampling->presence_penalty != 0 ||
           sampling->frequency_penalty != 0 ||
           (sampling->repetition_penalty != 0 && sampling->repetition_penalty != 1);
}

llm_status sampler_choose(const Sampler *sampler, const float *logits, const llm_sampling *sampling,
                          Text text, const llm_token *forbidden, size_t forbidden_count,
                          Random *random, llm_token *id, llm_error *error) {
    const float *scores = logits;
    if (sampling->temperature != 0 || forbidden_count || changes_logits(sampling)) {
        memcpy(sampler->scores, logits, sampler->vocab_size * sizeof(float));
        for (size_t i = 0; i < forbidden_count; i++)
            sampler->scores[forbidden[i]] = -INFINITY;
        penalize(sampler, sampling, text);
        scores = sampler->scores;
    }
    const size_t likeliest = index_of_highest(scores, sampler->vocab_size);
    if (isnan(scores[likeliest]) || scores[likeliest] == INFINITY)
        return fail(error, LLM_NOT_A_NUMBER,
                    "The engine returned NaN or infinity for this text, its precision overflows: "
                    "export the model again in float32 or with --bf16.");
    if (sampling->temperature == 0) {
        *id = (llm_token)likeliest;
        return LLM_OK;
    }
    warp(sampler, sampling);
    *id = draw(sampler, random);
    return LLM_OK;
}
