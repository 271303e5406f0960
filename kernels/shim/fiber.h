// Fibers: threads of a kernel that one CPU thread runs in turns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__) && defined(__linux__) && !defined(SWL_UCONTEXT)

// Saves the registers a call must keep, swaps stacks, restores.
extern "C" void swl_fiber_switch(void **save, void *load);
asm(R"(
.text
.type swl_fiber_switch,@function
swl_fiber_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size swl_fiber_switch,.-swl_fiber_switch
)");

namespace shim {

struct Context {
    void *stack_pointer = nullptr;

    // Starts at `entry`, which must not return.
    void prepare(char *stack, size_t bytes, void (*entry)()) {
        uintptr_t top = (reinterpret_cast<uintptr_t>(stack) + bytes) & ~uintptr_t(15);
        void **slots = reinterpret_cast<void **>(top);
        // Where a call would have left the stack: 8 past a multiple of 16 once `entry` is popped.
        slots[-1] = nullptr;
        slots[-2] = reinterpret_cast<void *>(entry);
        for (int i = 3; i <= 8; ++i) {
            slots[-i] = nullptr;
        }
        stack_pointer = slots - 8;
    }
};

inline void switch_to(Context &from, Context &to) { swl_fiber_switch(&from.stack_pointer, to.stack_pointer); }

} // namespace shim

#else

#include <ucontext.h>

namespace shim {

struct Context {
    ucontext_t inner;

    void prepare(char *stack, size_t bytes, void (*entry)()) {
        getcontext(&inner);
        inner.uc_stack.ss_sp = stack;
        inner.uc_stack.ss_size = bytes;
        inner.uc_link = nullptr;
        makecontext(&inner, entry, 0);
    }
};

inline void switch_to(Context &from, Context &to) { swapcontext(&from.inner, &to.inner); }

} // namespace shim

#endif
