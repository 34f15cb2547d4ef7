// Fibers: each CUDA thread runs on a stack of its own and gives way where it has to wait.
#pragma once

#include <sys/mman.h>
#include <cstddef>
#include <cstdint>
#if !defined(__x86_64__) || defined(EMULATOR_UCONTEXT)
#define EMULATOR_UCONTEXT 1
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

#ifndef EMULATOR_UCONTEXT
// Saves the registers that a call must keep and the stack pointer, and takes up another stack. The
// portable way, swapcontext, asks the kernel for the signal mask each time and is seven times slower.
extern "C" void emulator_switch(void** save, void* resume);
asm(R"(
.text
.p2align 4
.hidden emulator_switch
.weak emulator_switch
.type emulator_switch, @function
emulator_switch:
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
.size emulator_switch, . - emulator_switch
)");
#endif

class Fiber {
 public:
  // Make ready to run `entry`, which never returns, from the top of the stack.
  void prepare(char* stack, size_t bytes, size_t offset, void (*entry)()) {
    stack_ = stack;
    bytes_ = bytes;
#if defined(__SANITIZE_ADDRESS__)
    fake_ = nullptr;
    // Whoever used it last may have left for good.
    __asan_unpoison_memory_region(stack, bytes);
#endif
#ifdef EMULATOR_UCONTEXT
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
    (void)offset;
#else
    auto top = reinterpret_cast<uintptr_t>(stack + bytes - offset) & ~uintptr_t(15);
    auto** slot = reinterpret_cast<void**>(top);
    *--slot = nullptr;  // as if a call had pushed it: the ABI's alignment
    *--slot = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--slot = nullptr;
    pointer_ = slot;
#endif
  }

  // Leave this fiber for another one; returns when somebody resumes this one. A fiber that is
  // `finished` is never resumed.
  __attribute__((noinline)) void resume(Fiber& other, bool finished = false) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(finished ? nullptr : &fake_, other.stack_, other.bytes_);
#else
    (void)finished;
#endif
#ifdef EMULATOR_UCONTEXT
    swapcontext(&context_, &other.context_);
#else
    emulator_switch(&pointer_, other.pointer_);
#endif
    arrive();
  }

  // The first thing on a fiber's own stack, and the last of each switch to it. The fiber of the
  // program's own stack, which nobody prepared, learns of its bounds when it first leaves `from` it.
  void arrive(Fiber* from = nullptr) {
#if defined(__SANITIZE_ADDRESS__)
    const void* bottom;
    size_t bytes;
    __sanitizer_finish_switch_fiber(fake_, &bottom, &bytes);
    if (from && !from->stack_) {
      from->stack_ = static_cast<char*>(const_cast<void*>(bottom));
      from->bytes_ = bytes;
    }
#else
    (void)from;
#endif
    asm volatile("" ::: "memory");
  }

 private:
  char* stack_ = nullptr;
  size_t bytes_ = 0;
#ifdef EMULATOR_UCONTEXT
  ucontext_t context_;
#else
  void* pointer_ = nullptr;
#endif
#if defined(__SANITIZE_ADDRESS__)
  void* fake_ = nullptr;
#endif
};

// Stacks for a number of fibers, a guard page below each; kept from launch to launch, and released
// before another library launches: two mappings a thread in each of a hundred libraries are more than
// a process may have.
class Stacks {
 public:
  char* reserve(uint32_t count, size_t bytes) {
    size_t each = bytes + guard, needed = each * count;
    if (memory_ && bytes == bytes_ && needed <= total_) return memory_;
    release();
    void* fresh = mmap(nullptr, needed, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    memory_ = fresh == MAP_FAILED ? nullptr : static_cast<char*>(fresh);
    total_ = needed;
    bytes_ = bytes;
    if (memory_)
      for (uint32_t i = 0; i < count; i++) mprotect(memory_ + each * i, guard, PROT_NONE);
    return memory_;
  }

  void release() {
    if (!memory_) return;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(memory_, total_);  // frames that no function returned from
#endif
    munmap(memory_, total_);
    memory_ = nullptr;
  }

  char* at(uint32_t i) const { return memory_ + (bytes_ + guard) * i + guard; }

 private:
  static constexpr size_t guard = 4096;
  char* memory_ = nullptr;
  size_t total_ = 0, bytes_ = 0;
};

}  // namespace emulator
