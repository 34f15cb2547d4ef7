// Which thread last did what to each piece of memory, and whether that is behind the running thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../trace.h"

namespace {

using emulator::trace::Kind;
using emulator::trace::Memory;

constexpr uint32_t lanes = 32;

// What each thread of a block knows of the others, in vector clocks: a thread's own clock moves on
// when it meets others, and they learn of all it did until then.
class Clocks {
 public:
  void resize(uint32_t threads) {
    count_ = threads;
    known_.assign(size_t(threads) * threads, 0);
    begin_block();
  }
  void begin_block() {
    own_.assign(count_, 1);
    all_.assign(count_, 0);
    if (partial_) std::fill(known_.begin(), known_.end(), 0u);
    partial_ = false;
  }

  void order_all() {
    for (uint32_t i = 0; i < count_; i++) all_[i] = own_[i]++;
  }
  void order(const uint32_t* ranks, uint32_t count) {
    partial_ = true;
    joined_.assign(count_, 0);
    for (uint32_t k = 0; k < count; k++) {
      const uint32_t* row = &known_[size_t(ranks[k]) * count_];
      for (uint32_t i = 0; i < count_; i++) joined_[i] = std::max(joined_[i], row[i]);
    }
    for (uint32_t k = 0; k < count; k++) joined_[ranks[k]] = own_[ranks[k]]++;
    for (uint32_t k = 0; k < count; k++)
      std::copy(joined_.begin(), joined_.end(), &known_[size_t(ranks[k]) * count_]);
  }

  uint32_t now(uint32_t rank) const { return own_[rank]; }
  // Whether what `other` did at its `clock` is behind `rank`.
  bool knows(uint32_t rank, uint32_t other, uint32_t clock) const {
    return clock <= all_[other] || clock <= known_[size_t(rank) * count_ + other];
  }

 private:
  uint32_t count_ = 0;
  bool partial_ = false;
  std::vector<uint32_t> own_, all_, known_, joined_;  // all_: known to everybody
};

struct Access {
  uint32_t place = 0;                    // 0: there was none
  uint32_t block = 0, clock = 0;
  uint16_t thread = 0;
  uint8_t kind = 0, flying = 0;          // flying: a copy that nobody has waited for

  Kind what() const { return static_cast<Kind>(kind); }
};

struct Cell {
  // More than one of either only while none of them is behind another: atomics among the writes.
  Access writes[2], reads[2];
};

// The cells of one memory, each for as many bytes as the accesses allow: they start with 16, and
// are halved when an access covers a part of one.
class Shadow {
 public:
  explicit Shadow(const Memory& memory) : memory_(memory) {
    origin_ = reinterpret_cast<uintptr_t>(memory.address) & ~uintptr_t(15);
    cells_.resize((end() - origin_ + 15) / 16);
  }

  // Note an access; returns an earlier one that it races with, or null.
  const Access* note(const void* address, uint32_t bytes, const Access& now, const Clocks& clocks) {
    auto [first, last] = find(address, bytes);
    for (size_t i = first; i < last; i++) {
      for (const Access& other : cells_[i].writes)
        if (races(other, now, clocks)) return &other;
      if (now.what() == Kind::read) continue;
      for (const Access& other : cells_[i].reads)
        if (races(other, now, clocks)) return &other;
    }
    for (size_t i = first; i < last; i++) {
      Cell& cell = cells_[i];
      if (now.what() == Kind::read) {
        keep(cell.reads, now, clocks);
      } else {
        // Whoever is behind this access is so behind the earlier ones too.
        cell.reads[0] = cell.reads[1] = Access{};
        if (now.what() == Kind::atomic) keep(cell.writes, now, clocks);
        else cell.writes[0] = now, cell.writes[1] = Access{};
      }
    }
    return nullptr;
  }

  void land(const void* address, uint32_t bytes, uint32_t thread, const Clocks& clocks) {
    auto [first, last] = find(address, bytes);
    for (size_t i = first; i < last; i++)
      for (Access& access : cells_[i].writes)
        if (access.flying && access.thread == thread) {
          access.flying = 0;
          access.clock = clocks.now(thread);
        }
  }

  const Memory& memory() const { return memory_; }

 private:
  uintptr_t end() const { return reinterpret_cast<uintptr_t>(memory_.address) + memory_.size; }

  std::pair<size_t, size_t> find(const void* address, uint32_t bytes) {
    uintptr_t first = reinterpret_cast<uintptr_t>(address) - origin_;
    uintptr_t last = std::min(first + bytes, end() - origin_);
    // The last cell may reach beyond the memory's end.
    while (granule_ > 1 && (first % granule_ || (last % granule_ && last != end() - origin_)))
      refine();
    return {first / granule_, (last + granule_ - 1) / granule_};
  }

  void refine() {
    std::vector<Cell> halves(2 * cells_.size());
    for (size_t i = 0; i < halves.size(); i++) halves[i] = cells_[i / 2];
    cells_.swap(halves);
    granule_ /= 2;
  }

  bool is_behind(const Access& old, const Access& now, const Clocks& clocks) const {
    if (!old.place) return true;
    if (old.block != now.block) return memory_.shared;  // each block has its own
    if (old.flying) return false;
    return old.thread == now.thread || clocks.knows(now.thread, old.thread, old.clock);
  }
  bool races(const Access& old, const Access& now, const Clocks& clocks) const {
    if (old.what() == Kind::atomic && now.what() == Kind::atomic) return false;
    return !is_behind(old, now, clocks);
  }

  // Of many, two are kept, of different blocks or warps where that is possible: somebody who has one
  // of them behind, but not all, then has not the other.
  void keep(Access (&kept)[2], const Access& now, const Clocks& clocks) {
    for (Access& old : kept)
      if (is_behind(old, now, clocks)) old = Access{};
    for (Access& old : kept)
      if (!old.place) {
        old = now;
        return;
      }
    kept[distance(kept[0], now) < distance(kept[1], now) ? 0 : 1] = now;
  }
  static int distance(const Access& a, const Access& b) {
    return a.block != b.block ? 2 : a.thread / lanes != b.thread / lanes ? 1 : 0;
  }

  Memory memory_;
  uintptr_t origin_;
  uint32_t granule_ = 16;
  std::vector<Cell> cells_;
};

}  // namespace
