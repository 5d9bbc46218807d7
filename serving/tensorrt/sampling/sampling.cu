// The next token of each row of logits [rows, vocab], as serving/sampling.py chooses it.
//
// One launch: blocks (x, row), up to MAX_THREADS threads. The blocks of a row wait for each other,
// so where there are several all must be resident (a cooperative launch). No result depends on how
// many there are: sums are integers, and of equal values the lowest id is taken. Every compiler
// rounds alike where it doesn't contract a * b + c.
//
// The borders of top-k and top-p are found by radix selection over ranks: score and id in one
// integer. Then Gumbel-max (Gumbel 1954; Maddison, Tarlow, Minka 2014, "A* Sampling"): the largest
// of score + noise, with noise from Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers:
// as easy as 1, 2, 3").

typedef unsigned int u32;
typedef unsigned long long u64;

constexpr int MAX_THREADS = 512, COPIES = 16;
constexpr int DIGIT_BITS = 8, DIGITS = 1 << DIGIT_BITS, ID_BITS = 24;
constexpr int SCORE_LEVELS = 32 / DIGIT_BITS, LEVELS = (32 + ID_BITS) / DIGIT_BITS;
constexpr u64 LAST_ID = (1 << ID_BITS) - 1;
// Fixed point in 64 bits: 2^20 exponentials of at most 1; probabilities that add up to about 1.
constexpr float EXPONENTIAL_UNIT = 0x1p43f, PROBABILITY_UNIT = 0x1p62f;

// One row's parameters, as in parameters.py.
struct Parameters {
    float temperature;  // 0: the likeliest token
    int top_k;          // 0: all
    float beyond_top_p; // 1 - top_p; 0: all
    float min_p;        // 0: all
    u64 seed;
    u64 chosen; // how many tokens were chosen with this seed; counted here
};

// One row's intermediate results, zero before the launch.
struct Workspace {
    u64 maximum, winner, sum;
    u64 weights[SCORE_LEVELS + LEVELS][DIGITS];
    u64 arrived;
};

struct Float32 {
    float stored;
    __device__ float value() const { return stored; }
};

struct Float16 {
    unsigned short stored;
    // Shifted into place, the exponent is 112 too small; the product is right for subnormals too.
    __device__ float value() const {
        float magnitude = __uint_as_float((stored & 0x7fffu) << 13) * 0x1p112f;
        u32 exponent = (stored & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
        return __uint_as_float(__float_as_uint(magnitude) | exponent | (stored & 0x8000u) << 16);
    }
};

struct BFloat16 {
    unsigned short stored;
    __device__ float value() const { return __uint_as_float(static_cast<u32>(stored) << 16); }
};

// e^x for x <= 0: 2^n e^r with |r| <= ln(2) / 2, and the Taylor series of e^r.
__device__ float exponential(float x) {
    if (!(x > -104.f))
        return 0.f;
    float n = rintf(x * 0x1.715476p+0f);
    float r = fmaf(n, -0x1.62e4p-1f, x); // the leading bits of ln(2): exact, for |n| < 2^8
    r = fmaf(n, -0x1.7f7d1cp-20f, r);
    float series = fmaf(fmaf(fmaf(1.f / 40320, r, 1.f / 5040), r, 1.f / 720), r, 1.f / 120);
    series = fmaf(fmaf(fmaf(series, r, 1.f / 24), r, 1.f / 6), r, 0.5f);
    series = fmaf(series * r, r, r) + 1.f;
    int half = static_cast<int>(n) / 2, rest = static_cast<int>(n) - half; // 2^n may be subnormal
    return series * __uint_as_float((127 + half) << 23) * __uint_as_float((127 + rest) << 23);
}

// ln(x) for normal x > 0: n ln(2) + ln(m), m near 1, and ln(m) = 2 artanh((m - 1) / (m + 1)).
__device__ float logarithm(float x) {
    u32 above = __float_as_uint(x) - 0x3f3504f3u; // sqrt(1/2), so that m is from there to sqrt(2)
    float n = static_cast<float>(static_cast<int>(above) >> 23);
    float m = __uint_as_float((above & 0x7fffffu) + 0x3f3504f3u);
    float t = (m - 1.f) / (m + 1.f), square = t * t;
    float series = fmaf(fmaf(1.f / 9, square, 1.f / 7), square, 1.f / 5);
    series = fmaf(series, square, 1.f / 3);
    series = fmaf(series * square, t, t) * 2.f;
    return fmaf(n, 0x1.62e4p-1f, fmaf(n, 0x1.7f7d1cp-20f, series));
}

// ln(1 + x) for x > -1, with what 1 + x loses to rounding put back.
__device__ float logarithm_of_1_plus(float x) {
    float y = 1.f + x;
    return logarithm(y) - ((y - 1.f) - x) / y;
}

__device__ void philox_4x32_10(u32 counter[4], u64 key) {
    u32 low = static_cast<u32>(key), high = static_cast<u32>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        u64 first = 0xd2511f53ull * counter[0], second = 0xcd9e8d57ull * counter[2];
        counter[0] = static_cast<u32>(second >> 32) ^ counter[1] ^ low;
        counter[1] = static_cast<u32>(second);
        counter[2] = static_cast<u32>(first >> 32) ^ counter[3] ^ high;
        counter[3] = static_cast<u32>(first);
        low += 0x9e3779b9u;
        high += 0xbb67ae85u;
    }
}

// Gumbel noise of one token in one draw: -ln(E), where E = -ln(1 - U) and U is uniform with 64
// bits, so that the small E, which win, are as fine as float32 goes.
__device__ float gumbel(int id, const Parameters &row) {
    u32 words[4] = {static_cast<u32>(id), 0, static_cast<u32>(row.chosen),
                    static_cast<u32>(row.chosen >> 32)};
    philox_4x32_10(words, row.seed);
    u64 integer = static_cast<u64>(words[0]) << 32 | words[1];
    float uniform = (static_cast<float>(integer) + 0.5f) * 0x1p-64f;
    return -logarithm(-logarithm_of_1_plus(-fminf(uniform, 0x1.fffffep-1f)));
}

// An integer that orders by value, then by id, the lowest last; NaN is above all. -0 equals 0.
__device__ u64 rank(float value, int id) {
    u32 bits = __float_as_uint(value + 0.f);
    u32 key = value != value ? ~0u : bits >> 31 ? ~bits : bits | 0x80000000u;
    return static_cast<u64>(key) << ID_BITS | (LAST_ID - id);
}

__device__ int id_of(u64 rank) { return static_cast<int>(LAST_ID - (rank & LAST_ID)); }

__device__ float value_of(u64 rank) {
    u32 key = static_cast<u32>(rank >> ID_BITS);
    return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key);
}

__device__ u64 larger(u64 a, u64 b) { return a > b ? a : b; }

// Waits for all blocks of the row, whose writes are seen from here on.
__device__ void row_barrier(Workspace &work) {
    __syncthreads();
    if (threadIdx.x == 0 && gridDim.x > 1) {
        __threadfence();
        u64 all = (atomicAdd(&work.arrived, 1ull) / gridDim.x + 1) * gridDim.x;
        while (atomicAdd(&work.arrived, 0ull) < all)
            __nanosleep(20);
        __threadfence();
    }
    __syncthreads();
}

// What the threads of a block share.
struct Block {
    u64 values[MAX_THREADS], sums[DIGITS], next[DIGITS];
    u64 copies[DIGITS * COPIES]; // so that few threads at once add to one place
    int digit;
};

__device__ Block &block() {
    __shared__ Block shared;
    return shared;
}

enum Combination { SUM, MAXIMUM };

// Combines a value of every thread of the row in `total`; every thread gets the result.
template <Combination HOW> __device__ u64 combine(u64 value, u64 *total, Workspace &work) {
    u64 *values = block().values;
    values[threadIdx.x] = value;
    for (u32 half = MAX_THREADS / 2; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half && threadIdx.x + half < blockDim.x) {
            u64 a = values[threadIdx.x], b = values[threadIdx.x + half];
            values[threadIdx.x] = HOW == SUM ? a + b : larger(a, b);
        }
    }
    if (threadIdx.x == 0)
        HOW == SUM ? atomicAdd(total, values[0]) : atomicMax(total, values[0]);
    row_barrier(work);
    return *total;
}

// Turns values [DIGITS] of the block into their running sums.
__device__ void accumulate(u64 *values, u64 *next) {
    for (int step = 1; step < DIGITS; step *= 2) {
        for (int i = threadIdx.x; i < DIGITS; i += blockDim.x)
            next[i] = values[i] + (i < step ? 0 : values[i - step]);
        __syncthreads();
        for (int i = threadIdx.x; i < DIGITS; i += blockDim.x)
            values[i] = next[i];
        __syncthreads();
    }
}

// A token counts as 1: the border is the k-th largest score, so `limit` tokens may be dropped.
struct TopK {
    u64 limit;
    __device__ u64 weight(float) const { return 1; }
    __device__ bool drops(u64 cumulative) const { return cumulative <= limit; }
};

// A token counts as its probability, rounded as in serving/sampling.py.
struct TopP {
    float maximum, sum, beyond_top_p;
    __device__ u64 weight(float score) const {
        return static_cast<u64>(exponential(score - maximum) / sum * PROBABILITY_UNIT);
    }
    __device__ bool drops(u64 cumulative) const {
        return static_cast<float>(cumulative) / PROBABILITY_UNIT <= beyond_top_p;
    }
};

// What is kept: ranks from `border` up whose probability is min_p of the likeliest's or more.
struct Kept {
    u64 border;
    float maximum, min_p;
    __device__ bool has(float score, int id) const {
        return rank(score, id) >= border && exponential(score - maximum) >= min_p;
    }
};

template <class Logit> struct Row {
    const Logit *logits;
    int vocab;
    Parameters parameters;
    Workspace &work;

    __device__ int first() const { return blockIdx.x * blockDim.x + threadIdx.x; }
    __device__ int stride() const { return gridDim.x * blockDim.x; }
    __device__ float score(int id) const {
        float logit = logits[id].value();
        return parameters.temperature > 0.f ? logit / parameters.temperature : logit;
    }

    __device__ u64 maximum() {
        u64 largest = 0;
        for (int id = first(); id < vocab; id += stride())
            largest = larger(largest, rank(score(id), id));
        return combine<MAXIMUM>(largest, &work.maximum, work);
    }

    __device__ float sum_of_exponentials(u64 border, float maximum) {
        u64 sum = 0;
        for (int id = first(); id < vocab; id += stride())
            if (rank(score(id), id) >= border)
                sum += static_cast<u64>(exponential(score(id) - maximum) * EXPONENTIAL_UNIT);
        return static_cast<float>(combine<SUM>(sum, &work.sum, work)) / EXPONENTIAL_UNIT;
    }

    // The rank, to `levels` digits, of the first token that stays when those from `lowest` up are
    // dropped in the order of their ranks for as long as `filter` allows. The last stays anyway.
    template <class Filter>
    __device__ u64 border(u64 lowest, int levels, const Filter &filter, u64 (*weights)[DIGITS]) {
        Block &shared = block();
        u64 digits = 0, below = 0, *sums = shared.sums;
        for (int level = 0; level < levels; ++level, ++weights) {
            int shift = DIGIT_BITS * (LEVELS - 1 - level);
            for (int i = threadIdx.x; i < DIGITS * COPIES; i += blockDim.x)
                shared.copies[i] = 0;
            __syncthreads();
            for (int id = first(); id < vocab; id += stride()) {
                u64 here = rank(score(id), id);
                int place = (here >> shift) % DIGITS * COPIES + threadIdx.x % COPIES;
                if (here >= lowest && here >> shift >> DIGIT_BITS == digits)
                    atomicAdd(&shared.copies[place], filter.weight(score(id)));
            }
            __syncthreads();
            for (int i = threadIdx.x; i < DIGITS; i += blockDim.x) {
                u64 sum = 0;
                for (int copy = 0; copy < COPIES; ++copy)
                    sum += shared.copies[i * COPIES + copy];
                if (sum)
                    atomicAdd(&(*weights)[i], sum);
            }
            row_barrier(work);
            for (int i = threadIdx.x; i < DIGITS; i += blockDim.x)
                sums[i] = (*weights)[i];
            __syncthreads();
            accumulate(sums, shared.next);
            u64 all = sums[DIGITS - 1];
            for (int i = threadIdx.x; i < DIGITS; i += blockDim.x) {
                u64 before = i ? sums[i - 1] : 0;
                bool is_reached = before < all && filter.drops(below + before);
                if (is_reached && (sums[i] == all || !filter.drops(below + sums[i])))
                    shared.digit = i;
            }
            __syncthreads();
            digits = digits << DIGIT_BITS | shared.digit;
            below += shared.digit ? sums[shared.digit - 1] : 0;
        }
        return digits << DIGIT_BITS * (LEVELS - levels);
    }

    // Top-k, then top-p of what it keeps; min-p needs no search.
    __device__ Kept kept(float maximum) {
        Kept result = {0, maximum, parameters.min_p};
        if (parameters.top_k > 0 && parameters.top_k < vocab) {
            TopK filter = {static_cast<u64>(vocab - parameters.top_k)};
            result.border = border(0, SCORE_LEVELS, filter, work.weights);
        }
        if (parameters.beyond_top_p > 0.f) {
            float sum = sum_of_exponentials(result.border, maximum);
            TopP filter = {maximum, sum, parameters.beyond_top_p};
            result.border = border(result.border, LEVELS, filter, work.weights + SCORE_LEVELS);
        }
        return result;
    }

    __device__ int draw(const Kept &kept) {
        u64 largest = 0;
        for (int id = first(); id < vocab; id += stride())
            if (kept.has(score(id), id))
                largest =
                    larger(largest, rank(score(id) - kept.maximum + gumbel(id, parameters), id));
        return id_of(combine<MAXIMUM>(largest, &work.winner, work));
    }
};

// Writes the chosen id, or -1 for a row with NaN: what reads the ids raises, and to a Gather that
// is already enqueued -1 is a valid index. An infinite maximum has no distribution: the likeliest
// token is taken. Where there are ``lengths``, a row's grows by the token that the next step
// writes.
template <class Logit>
__device__ void sample(const Logit *logits, int vocab, Parameters *parameters, Workspace *work,
                       long long *tokens, long long *lengths) {
    int at = blockIdx.y;
    Row<Logit> row = {logits + static_cast<u64>(at) * vocab, vocab, parameters[at], work[at]};
    u64 largest = row.maximum();
    float maximum = value_of(largest);
    bool drawn = row.parameters.temperature > 0.f && maximum - maximum == 0.f;
    int token = maximum != maximum ? -1 : drawn ? row.draw(row.kept(maximum)) : id_of(largest);
    if (threadIdx.x == 0 && blockIdx.x == 0) {
        tokens[at] = token;
        parameters[at].chosen += 1;
        if (lengths)
            lengths[at] += 1;
    }
}

#define KERNEL(NAME, LOGIT)                                                                        \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS)                                      \
        NAME(const LOGIT *logits, int vocab, Parameters *parameters, Workspace *work,              \
             long long *tokens, long long *lengths) {                                              \
        sample(logits, vocab, parameters, work, tokens, lengths);                                  \
    }

KERNEL(sample_float32, Float32)
KERNEL(sample_float16, Float16)
KERNEL(sample_bfloat16, BFloat16)
