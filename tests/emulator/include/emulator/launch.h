// Runs the blocks of a grid, one after the other, and exports a kernel to Python.
#pragma once

#include <type_traits>
#include <utility>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include "death.h"
#endif
#include "warp.h"

namespace emulator {

// What a thread runs on its own stack.
inline void run_thread() {
  block->current->fiber.arrive(&block->scheduler);
  block->entry(block->arguments);
  Thread& self = *block->current;
  if (self.copies.count)
    fail("the thread ends without having waited for %s", Here(self.copies.list[0].site).text);
  self.state = State::done;
  block->alive--;
  for (uint32_t number = 0; number < 16; number++) {
    Barrier& barrier = block->barriers[number];
    if (barrier.arrived && !barrier.expected && barrier.arrived == block->alive)
      open_barrier(barrier, number);
  }
  give_way();
  __builtin_trap();
}

inline void report_deadlock() {
  struct Group {
    Site site;
    uint32_t mask, count, first;
  } groups[8];
  uint32_t known = 0, ended = 0;
  for (uint32_t i = 0; i < block->count; i++) {
    const Thread& thread = block->threads[i];
    if (thread.state == State::done) {
      ended++;
      continue;
    }
    uint32_t mask = thread.state == State::in_collective ? thread.mask : 0, k = 0;
    while (k < known && !(groups[k].site == thread.site && groups[k].mask == mask)) k++;
    if (k == 8) continue;
    if (k == known) groups[known++] = {thread.site, mask, 0, i};
    groups[k].count++;
  }
  char text[2048];
  size_t at = 0;
  text[0] = 0;
  for (uint32_t k = 0; k < known && at < sizeof text - 256; k++) {
    const Group& group = groups[k];
    at += snprintf(text + at, sizeof text - at, "%u thread(s), %u the first, wait in %s",
                   group.count, group.first, Here(group.site).text);
    if (group.mask) at += snprintf(text + at, sizeof text - at, " for mask 0x%08x", group.mask);
    at += snprintf(text + at, sizeof text - at, "; ");
  }
  fail("deadlock: %s%u thread(s) have ended", text, ended);
}

inline void run_block(uint64_t number) {
  Block& b = *block;
  b.alive = b.count;
  b.ready.clear();
  b.current = nullptr;
  for (Warp& warp : b.warps) warp.count = 0;
  for (Barrier& barrier : b.barriers) barrier = Barrier{};
  // Bytes of ones are NaN in every floating type: what nobody wrote shows in the result.
  for (const Variable& variable : shared_variables) memset(variable.address, 0xff, variable.size);
  if (b.dynamic) memset(b.dynamic, 0xff, b.request.dynamic_bytes);
  for (uint32_t i = 0; i < b.count; i++) {
    Thread& thread = b.threads[i];
    thread.copies.count = thread.copies.group = 0;
    // Stacks a multiple of the page apart would share a few lines of the cache.
    thread.fiber.prepare(stacks.at(i), b.request.stack_bytes, i * 192 % 4096, run_thread);
    make_ready(thread);
  }
  trace::begin_block(number, b.request.first_counted <= number && number < b.request.last_counted);
  while (b.alive && !b.failed) {
    if (b.ready.empty()) {
      report_deadlock();
      break;
    }
    Thread& next = choose();
    switch_to(next);
    b.scheduler.resume(next.fiber);
  }
  b.current = nullptr;
  trace::run(trace::nobody);
  trace::end_block();
}

// Denormal numbers are zero, as CuPy compiles kernels.
class FlushToZero {
#ifdef __SSE__
 public:
  FlushToZero() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushToZero() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// 128 bytes aligned, and under the address sanitizer fenced in.
class DynamicMemory {
 public:
  explicit DynamicMemory(size_t bytes) : size_((bytes + 127) / 128 * 128) {
    if (!bytes) return;
    memory = static_cast<char*>(aligned_alloc(128, size_));
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(memory + bytes, size_ - bytes);
#endif
  }
  ~DynamicMemory() {
#if defined(__SANITIZE_ADDRESS__)
    if (memory) __asan_unpoison_memory_region(memory, size_);
#endif
    free(memory);
  }
  char* memory = nullptr;

 private:
  size_t size_;
};

// Tell the tracer what to watch.
inline void begin_trace() {
#ifdef EMULATOR_TRACE
  const Block& b = *block;
  auto* memories = new trace::Memory[shared_variables.count + array_arguments.count + 1];
  uint32_t count = 0;
  for (const Variable& v : shared_variables) memories[count++] = {v.address, v.size, v.name, true};
  if (b.dynamic)
    memories[count++] = {b.dynamic, b.request.dynamic_bytes, "dynamic shared memory", true};
  for (const Variable& v : array_arguments) memories[count++] = {v.address, v.size, v.name, false};
  trace::Launch launch{memories, count, {}, {}};
  memcpy(launch.grid, b.request.grid, sizeof launch.grid);
  memcpy(launch.block, b.request.block, sizeof launch.block);
  trace::begin_launch(launch);
  delete[] memories;
#endif
}

inline void run_grid() {
  Block& b = *block;
  const Request& request = b.request;
  DynamicMemory dynamic(request.dynamic_bytes);
  b.dynamic = dynamic.memory;
  uint64_t row = request.grid[0], plane = row * request.grid[1], all = plane * request.grid[2];
  uint64_t last = request.last_block < all ? request.last_block : all;
  begin_trace();
  FlushToZero flush;
  for (uint64_t i = request.first_block; i < last && !b.failed; i++) {
    blockIdx = make_uint3(uint32_t(i % row), uint32_t(i / row % request.grid[1]), uint32_t(i / plane));
    run_block(i);
    b.report->blocks++;
  }
}

inline int launch(const char* kernel, void (*entry)(void**), const Request* request,
                  void** arguments, Report* report) {
  const uint32_t *grid = request->grid, *size = request->block;
  uint64_t threads = uint64_t(size[0]) * size[1] * size[2];
  *report = Report{};
  if (!threads || threads > most_threads || size[2] > 64) {
    snprintf(report->error, sizeof report->error, "a block of %u x %u x %u threads", size[0],
             size[1], size[2]);
    return 1;
  }
  if (!grid[0] || !grid[1] || !grid[2] || grid[0] >> 31 || grid[1] >> 16 || grid[2] >> 16) {
    snprintf(report->error, sizeof report->error, "a grid of %u x %u x %u blocks", grid[0], grid[1],
             grid[2]);
    return 1;
  }
  if (!stacks.reserve(uint32_t(threads), request->stack_bytes)) {
    snprintf(report->error, sizeof report->error, "no memory for %u stacks", uint32_t(threads));
    return 1;
  }
  auto b = new Block{};
  block = b;
  b->kernel = kernel;
  b->request = *request;
  b->report = report;
  b->entry = entry;
  b->arguments = arguments;
  b->count = uint32_t(threads);
  b->threads = new Thread[threads]();
  b->random = request->seed;
  for (uint32_t i = 0; i < b->count; i++) {
    b->threads[i].rank = i;
    b->threads[i].index = make_uint3(i % size[0], i / size[0] % size[1], i / (size[0] * size[1]));
  }
  blockDim = dim3(size[0], size[1], size[2]);
  gridDim = dim3(grid[0], grid[1], grid[2]);
#if defined(__SANITIZE_ADDRESS__)
  report_deaths();
#endif
  run_grid();
  int failed = b->failed;
  delete[] b->threads;
  delete b;
  block = nullptr;
  return failed;
}

#ifdef EMULATOR_TRACE
// For the tracer. Not inline, for no other code calls it.
void trace::fail(const char* text) { emulator::fail("%s", text); }
#endif

template <class... A, size_t... I>
inline void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_cv_t<std::remove_reference_t<A>>*>(arguments[I])...);
}
template <class... A>
constexpr auto count_arguments(void (*)(A...)) {
  return std::index_sequence_for<A...>{};
}
template <class... A>
inline int list_sizes(void (*)(A...), uint32_t* sizes) {
  const uint32_t found[] = {uint32_t(sizeof(A))..., 0};
  memcpy(sizes, found, sizeof...(A) * sizeof(uint32_t));
  return int(sizeof...(A));
}

}  // namespace emulator

#define EMULATOR_PUBLIC extern "C" __attribute__((visibility("default"), used))
// The kernel may be an instance of a template, with commas.
#define EMULATOR_EXPORT(name, ...)                                                     \
  EMULATOR_PUBLIC int emulator_sizes_##name(uint32_t* sizes) {                         \
    return emulator::list_sizes(&__VA_ARGS__, sizes);                                  \
  }                                                                                    \
  EMULATOR_PUBLIC int emulator_launch_##name(const emulator::Request* request,         \
                                             void** arguments, emulator::Report* report) { \
    auto entry = [](void** a) {                                                        \
      emulator::call(&__VA_ARGS__, a, emulator::count_arguments(&__VA_ARGS__));        \
    };                                                                                 \
    return emulator::launch(#name, entry, request, arguments, report);                 \
  }

EMULATOR_PUBLIC inline void emulator_release_stacks() { emulator::stacks.release(); }
EMULATOR_PUBLIC inline void emulator_set_shared(const emulator::Variable* first, uint32_t count) {
  emulator::shared_variables = {first, count};
}
EMULATOR_PUBLIC inline void emulator_set_arrays(const emulator::Variable* first, uint32_t count) {
  emulator::array_arguments = {first, count};
}
