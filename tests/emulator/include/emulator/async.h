// cp.async: copies to shared memory that are under way until somebody waits for them.
#pragma once

#include "warp.h"

namespace emulator {

EMULATOR_UNTRACED inline void move(AsyncCopy& copy) {
  if (copy.moved) return;
  memcpy(copy.to, copy.from, copy.bytes);
  memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.zeros);
  copy.moved = true;
}

// Copy `from_bytes` and fill up with zeros to `bytes`. It happens as late as it may, at the wait, or,
// in shuffled schedules, now and then at once.
inline void cp_async(void* to, const void* from, int bytes, int from_bytes, EMULATOR_SITE) {
  Site site{"cp.async", file, line};
  AsyncCopies& copies = block->current->copies;
  if ((bytes != 4 && bytes != 8 && bytes != 16) || from_bytes < 0 || from_bytes > bytes)
    fail("%s: %d of %d bytes", Here(site).text, from_bytes, bytes);
  if ((reinterpret_cast<uintptr_t>(to) | (from_bytes ? reinterpret_cast<uintptr_t>(from) : 0)) &
      (bytes - 1))
    fail("%s: an address is not aligned to %d bytes", Here(site).text, bytes);
  if (copies.count == AsyncCopies::most)
    fail("%s: more than %u under way in a thread", Here(site).text, AsyncCopies::most);
#if defined(__SANITIZE_ADDRESS__)
  // The copy itself may come much later.
  if (__asan_region_is_poisoned(to, bytes)) fail("%s: writes out of bounds", Here(site).text);
  if (from_bytes && __asan_region_is_poisoned(const_cast<void*>(from), from_bytes))
    fail("%s: reads out of bounds", Here(site).text);
#endif
  if (from_bytes) trace::record(trace::Kind::read, from, from_bytes, file, line);
  trace::begin_copy(to, bytes, file, line);
  AsyncCopy& copy = copies.list[copies.count++];
  copy = {to, from, uint32_t(from_bytes), uint32_t(bytes - from_bytes), copies.group, false, site};
  if (is_shuffled() && draw() % 2) move(copy);
}

inline void cp_async_commit() { block->current->copies.group++; }

// Wait for all copies of the groups before `end`.
inline void finish_copies(uint32_t end) {
  AsyncCopies& copies = block->current->copies;
  uint32_t left = 0;
  for (uint32_t i = 0; i < copies.count; i++) {
    AsyncCopy& copy = copies.list[i];
    if (copy.group < end) {
      move(copy);
      trace::end_copy(copy.to, copy.bytes + copy.zeros);
    } else {
      copies.list[left++] = copy;
    }
  }
  copies.count = left;
}

// Wait for all but the last `left` groups that were committed.
inline void cp_async_wait(uint32_t left) {
  uint32_t committed = block->current->copies.group;
  finish_copies(committed > left ? committed - left : 0);
}

// Wait for all, committed or not.
inline void cp_async_wait_all() { finish_copies(~0u); }

}  // namespace emulator
