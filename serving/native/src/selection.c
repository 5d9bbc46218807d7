#include "selection.h"

#include <math.h>
#include <stdbool.h>

size_t index_of_highest(const float *values, size_t count) {
    size_t highest = 0;
    for (size_t i = 0; i < count; i++) {
        if (values[i] > values[highest])
            highest = i;
        else if (isnan(values[i]))
            return i;
    }
    return highest;
}

static void swap(float *a, float *b) {
    const float kept = *a;
    *a = *b;
    *b = kept;
}

static float median(float a, float b, float c) { return fmaxf(fminf(a, b), fminf(fmaxf(a, b), c)); }

/* Hoare, "Algorithm 65: Find", 1961; the middle of three is the pivot. */
float kth_highest(float *values, size_t count, size_t k) {
    const ptrdiff_t wanted = (ptrdiff_t)k - 1;
    ptrdiff_t low = 0, high = (ptrdiff_t)count - 1;
    while (low < high) {
        const float pivot = median(values[low], values[low + (high - low) / 2], values[high]);
        ptrdiff_t left = low, right = high;
        while (left <= right) {
            while (values[left] > pivot)
                left++;
            while (values[right] < pivot)
                right--;
            if (left <= right)
                swap(&values[left++], &values[right--]);
        }
        if (wanted <= right)
            high = right;
        else if (wanted >= left)
            low = left;
        else
            break;
    }
    return values[wanted];
}

static bool is_before(uint32_t a, uint32_t b, const float *scores) {
    return scores[a] < scores[b] || (scores[a] == scores[b] && a > b);
}

static void sift_down(uint32_t *ids, size_t root, size_t count, const float *scores) {
    const uint32_t sinking = ids[root];
    for (size_t child = 2 * root + 1; child < count; child = 2 * root + 1) {
        if (child + 1 < count && is_before(ids[child], ids[child + 1], scores))
            child++;
        if (!is_before(sinking, ids[child], scores))
            break;
        ids[root] = ids[child];
        root = child;
    }
    ids[root] = sinking;
}

/* Williams, "Algorithm 232: Heapsort", 1964: without memory beyond the ids. */
void sort_ascending(uint32_t *ids, size_t count, const float *scores) {
    for (size_t root = count / 2; root-- > 0;)
        sift_down(ids, root, count, scores);
    for (size_t last = count; last-- > 1;) {
        const uint32_t highest = ids[0];
        ids[0] = ids[last];
        ids[last] = highest;
        sift_down(ids, 0, last, scores);
    }
}
