// A block at work: its threads, the order in which they run, barriers, and the first error.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fiber.h"
#include "trace.h"

namespace emulator {

// What Python asks for, and what it hears back; launch.py has the same fields.
enum Schedule : uint32_t { ascending, descending, shuffled, shuffled_by_warp };
struct Request {
  uint32_t grid[3], block[3];
  uint64_t dynamic_bytes, stack_bytes, first_block, last_block, first_counted, last_counted, seed;
  uint32_t schedule;
};
struct Report {
  uint64_t blocks, switches, barriers, collectives;
  char error[2048];
};
struct Variable {  // of shared memory, or an array that has a name
  char* address;
  uint64_t size;
  const char* name;
};
struct Variables {
  const Variable* first = nullptr;
  uint32_t count = 0;
  const Variable* begin() const { return first; }
  const Variable* end() const { return first + count; }
};

struct Site {  // where a thread waits
  const char* what = nullptr;
  const char* file = nullptr;
  int line = 0;
  bool operator==(const Site& other) const {
    return line == other.line && !strcmp(what, other.what) && !strcmp(file, other.file);
  }
};
struct Here {  // a site as messages show it
  char text[160];
  explicit Here(const Site& site) {
    snprintf(text, sizeof text, "%s at %s:%d", site.what, site.file, site.line);
  }
};
// The last arguments of what CUDA adds: where they are called.
#define EMULATOR_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

constexpr uint32_t most_threads = 1024, lanes = 32, most_warps = most_threads / lanes;

struct AsyncCopy {
  void* to;
  const void* from;
  uint32_t bytes, zeros, group;
  bool moved;                            // early; others may not count on it
  Site site;
};
struct AsyncCopies {                     // of a thread, not waited for yet
  static constexpr uint32_t most = 128;
  AsyncCopy list[most];
  uint32_t count, group;
};

enum class State : uint8_t { ready, at_barrier, in_collective, done };
struct Thread {
  Fiber fiber;
  uint3 index;
  uint32_t rank;
  State state;
  Site site;
  uint32_t barrier;                      // while at_barrier
  uint32_t mask;                         // while in_collective
  const void* in;
  void* out;
  AsyncCopies copies;
};

struct Vote {
  int any = 0, all = 1, count = 0;
};
struct Barrier {
  uint32_t arrived = 0, expected = 0;    // expected 0: all threads that are alive
  Site site;
  Vote open, closed;                     // of this round and of the last
};

struct Gathering {                       // lanes on their way into one warp collective
  uint32_t mask, arrived;
  Site site;
};
struct Warp {
  static constexpr uint32_t most = 8;
  Gathering gatherings[most];
  uint32_t count;
};

// The threads that can run, in the order in which they became so.
class ReadyQueue {
 public:
  void clear() { first_ = last_ = 0; }
  bool empty() const { return first_ == last_; }
  uint32_t size() const { return last_ - first_; }
  uint32_t& operator[](uint32_t i) { return at(first_ + i); }
  void push(uint32_t rank) { at(last_++) = rank; }
  uint32_t take_first() { return at(first_++); }
  uint32_t take(uint32_t i) {
    uint32_t rank = (*this)[i];
    (*this)[i] = at(--last_);
    return rank;
  }

 private:
  static constexpr uint32_t capacity = 2 * most_threads;  // a power of two: indices may wrap
  uint32_t& at(uint32_t i) { return ranks_[i % capacity]; }
  uint32_t ranks_[capacity], first_ = 0, last_ = 0;
};

struct Block {
  const char* kernel;
  Request request;
  Report* report;
  void (*entry)(void**);
  void** arguments;
  uint32_t count, alive;
  Thread* threads;
  Thread* current;                       // null while the scheduler itself runs
  Fiber scheduler;
  ReadyQueue ready;
  Barrier barriers[16];
  Warp warps[most_warps];
  char* dynamic;
  uint64_t random;
  uint32_t last_warp;
  bool failed;
};

inline Block* block;                     // the one at work; the emulator runs one at a time
inline Variables shared_variables, array_arguments;
inline Stacks stacks;

inline uint64_t draw() {                 // splitmix64
  uint64_t z = block->random += 0x9E3779B97F4A7C15ull;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ z >> 27) * 0x94D049BB133111EBull;
  return z ^ z >> 31;
}

// Which thread goes on. A shuffled schedule by warps stays with a warp for a while, as hardware does:
// between its barriers one warp then runs far ahead of the others.
inline Thread& choose() {
  Block& b = *block;
  uint32_t rank, among = b.ready.size();
  switch (b.request.schedule) {
    case ascending: rank = b.ready.take_first(); break;
    case descending: rank = b.ready.take(among - 1); break;
    case shuffled: rank = b.ready.take(draw() % among); break;
    default: {
      uint32_t chosen = draw() % among;
      if (draw() % 16)
        for (uint32_t i = 0; i < among; i++)
          if (b.ready[i] / lanes == b.last_warp) { chosen = i; break; }
      rank = b.ready.take(chosen);
    }
  }
  b.last_warp = rank / lanes;
  return b.threads[rank];
}

inline bool is_shuffled() { return block->request.schedule >= shuffled; }

inline void make_ready(Thread& thread) {
  thread.state = State::ready;
  block->ready.push(thread.rank);
}

inline void switch_to(Thread& thread) {
  block->current = &thread;
  threadIdx = thread.index;
  trace::run(thread.rank);
  block->report->switches++;
}

// Give way to a thread that can run, or to the scheduler: if there is none, or `to_scheduler`.
__attribute__((noinline)) inline void give_way(bool to_scheduler = false) {
  Thread& self = *block->current;
  bool finished = self.state == State::done;
  if (to_scheduler || block->ready.empty()) {
    block->current = nullptr;
    trace::run(trace::nobody);
    self.fiber.resume(block->scheduler, finished);
    return;
  }
  Thread& next = choose();
  if (&next == &self) return;
  switch_to(next);
  self.fiber.resume(next.fiber, finished);
}

// Keep the first error, and leave the block for good.
__attribute__((format(printf, 1, 2), noinline)) inline void fail(const char* format, ...) {
  if (!block->failed) {
    block->failed = true;
    char* text = block->report->error;
    size_t size = sizeof block->report->error, at;
    at = snprintf(text, size, "block (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z);
    if (block->current)
      at += snprintf(text + at, size - at, ", thread (%u, %u, %u)", threadIdx.x, threadIdx.y,
                     threadIdx.z);
    at += snprintf(text + at, size - at, ": ");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + at, size - at, format, arguments);
    va_end(arguments);
  }
  if (block->current) {
    block->current->state = State::at_barrier;  // anything but ready: never resumed
    give_way(true);
  }
}

inline void open_barrier(Barrier& barrier, uint32_t number) {
  barrier.closed = barrier.open;
  barrier.open = Vote{};
  barrier.arrived = 0;
  uint32_t ranks[most_threads], count = 0;
  for (uint32_t i = 0; i < block->count; i++) {
    Thread& thread = block->threads[i];
    if (thread.state != State::at_barrier || thread.barrier != number) continue;
    make_ready(thread);
    ranks[count++] = i;
  }
  if (barrier.expected) trace::order(ranks, count);
  else trace::order_all();
}

// Wait for all threads of the block, or for `expected` of them at a named barrier. Those of a named
// barrier may wait at different lines: producers and consumers do.
inline Vote wait_at_barrier(uint32_t number, uint32_t expected, int predicate, Site site) {
  Thread& self = *block->current;
  if (number >= 16) fail("%s: there is no barrier %u", Here(site).text, number);
  Barrier& barrier = block->barriers[number];
  block->report->barriers++;
  if (!barrier.arrived) {
    barrier.site = site;
    barrier.expected = expected;
  } else if (barrier.expected != expected) {
    fail("%s: %u threads here, %u there", Here(site).text, expected, barrier.expected);
  } else if (!expected && !(barrier.site == site)) {
    fail("divergent barrier: this thread reached %s while others wait in %s", Here(site).text,
         Here(barrier.site).text);
  }
  barrier.open.any |= predicate != 0;
  barrier.open.all &= predicate != 0;
  barrier.open.count += predicate != 0;
  barrier.arrived++;
  self.state = State::at_barrier;
  self.barrier = number;
  self.site = site;
  if (barrier.arrived == (expected ? expected : block->alive)) open_barrier(barrier, number);
  give_way();
  return barrier.closed;
}

}  // namespace emulator
