// What a kernel that is traced and the tracer, which is compiled apart, know of each other. In the
// other modes these functions do nothing.
#pragma once

#include <cstdint>

namespace emulator::trace {

constexpr uint32_t nobody = ~0u;

enum class Kind : uint32_t { read, write, atomic, copy };

struct Memory {  // that is watched
  char* address;
  uint64_t size;
  const char* name;
  bool shared;
};

struct Launch {
  const Memory* memories;
  uint32_t count, grid[3], block[3];
};

#ifdef EMULATOR_TRACE

extern uint32_t running;                 // the rank of the thread at work, or nobody
inline void run(uint32_t rank) { running = rank; }

void begin_launch(const Launch& launch);
void begin_block(uint64_t number, bool counted);
void end_block();

// What these threads did is behind them, for each of them.
void order(const uint32_t* ranks, uint32_t count);
void order_all();

// An access of the running thread that the compiler's hooks do not see.
void record(Kind kind, const void* address, uint32_t bytes, const char* file, int line);
// Nobody may touch its target from the copy's beginning to its end.
void begin_copy(const void* to, uint32_t bytes, const char* file, int line);
void end_copy(const void* to, uint32_t bytes);

// Of the kernel's side: report an error, do not return.
void fail(const char* text);

#else

inline void run(uint32_t) {}
inline void begin_launch(const Launch&) {}
inline void begin_block(uint64_t, bool) {}
inline void end_block() {}
inline void order(const uint32_t*, uint32_t) {}
inline void order_all() {}
inline void record(Kind, const void*, uint32_t, const char*, int) {}
inline void begin_copy(const void*, uint32_t, const char*, int) {}
inline void end_copy(const void*, uint32_t) {}

#endif

}  // namespace emulator::trace

// For functions that touch memory on behalf of the kernel and record that themselves.
#define EMULATOR_UNTRACED __attribute__((no_sanitize_thread, noinline))
