// CUDA's words for a C++ compiler: a block is a thread of the host, its threads are fibers that
// take turns at each barrier.
#pragma once

#include <cmath>
#include <cstring>
#include <thread>
#include <ucontext.h>
#include <vector>

#define __device__
#define __global__
#define __shared__ static thread_local
#define __launch_bounds__(threads)

struct Place {
    unsigned x, y;
};
static thread_local Place threadIdx, blockIdx, blockDim, gridDim;

struct Fibers {
    std::vector<ucontext_t> contexts;
    std::vector<char> stacks;
    ucontext_t caller;
};
static thread_local Fibers *fibers;

// Each thread runs to the barrier, then hands over to the next; when it is its turn again, all have
// arrived. Odd blocks go backwards, so that nothing can rely on an order.
inline void __syncthreads() {
    if (blockDim.x == 1)
        return;
    unsigned current = threadIdx.x, step = blockIdx.x % 2 ? blockDim.x - 1 : 1;
    unsigned next = (current + step) % blockDim.x;
    threadIdx.x = next;
    swapcontext(&fibers->contexts[current], &fibers->contexts[next]);
    threadIdx.x = current;
}

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned) { std::this_thread::yield(); }

inline unsigned long long atomicAdd(unsigned long long *at, unsigned long long value) {
    return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}

inline unsigned long long atomicMax(unsigned long long *at, unsigned long long value) {
    unsigned long long old = __atomic_load_n(at, __ATOMIC_SEQ_CST);
    while (old < value &&
           !__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
    return old;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <class Kernel> struct Fiber {
    static thread_local const Kernel *kernel;
    static void run() {
        (*kernel)();
        // What follows is the next thread's end, or the caller.
        threadIdx.x = (threadIdx.x + (blockIdx.x % 2 ? blockDim.x - 1 : 1)) % blockDim.x;
    }
};
template <class Kernel> thread_local const Kernel *Fiber<Kernel>::kernel;

template <class Kernel>
void run_block(unsigned block, unsigned blocks, unsigned threads, const Kernel &kernel) {
    blockIdx = {block, 0}, gridDim = {blocks, 1}, blockDim = {threads, 1}, threadIdx = {0, 0};
    if (threads == 1)
        return kernel();
    constexpr size_t STACK = 1 << 16;
    Fibers all;
    all.contexts.resize(threads);
    all.stacks.resize(threads * STACK);
    fibers = &all;
    Fiber<Kernel>::kernel = &kernel;
    unsigned step = block % 2 ? threads - 1 : 1;
    for (unsigned i = 0; i < threads; ++i) {
        ucontext_t &context = all.contexts[i];
        getcontext(&context);
        context.uc_stack.ss_sp = &all.stacks[i * STACK];
        context.uc_stack.ss_size = STACK;
        unsigned next = (i + step) % threads;
        context.uc_link = next ? &all.contexts[next] : &all.caller; // thread 0 begins
        makecontext(&context, Fiber<Kernel>::run, 0);
    }
    swapcontext(&all.caller, &all.contexts[0]);
}

// Runs `kernel` as `blocks` blocks of one row, all of them at once.
template <class Kernel> void launch(unsigned blocks, unsigned threads, const Kernel &kernel) {
    if (blocks == 1)
        return run_block(0, 1, threads, kernel);
    std::vector<std::thread> running;
    for (unsigned block = 0; block < blocks; ++block)
        running.emplace_back([&, block] { run_block(block, blocks, threads, kernel); });
    for (std::thread &block : running)
        block.join();
}
