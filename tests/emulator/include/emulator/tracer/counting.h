// What the accesses of a warp cost together: wavefronts in shared memory, sectors in global memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <tuple>
#include <vector>

#include "races.h"

namespace {

struct Cost {
  uint64_t requests = 0, units = 0, ideal = 0;
};

// One instruction of a warp: which lanes take part, at which addresses.
struct Instruction {
  uint32_t mask = 0;
  uint64_t addresses[lanes];
};

// Sorted, each once.
template <class T>
inline uint64_t count_distinct(T* first, T* last) {
  std::sort(first, last);
  return uint64_t(std::unique(first, last) - first);
}

// 32 banks of 4 bytes. More than 4 bytes a thread are served for 16 or 8 lanes at a time.
inline void add_wavefronts(Cost& cost, const Instruction& instruction, uint32_t bytes) {
  uint32_t each = bytes <= 4 ? 32 : bytes <= 8 ? 16 : 8;
  for (uint32_t phase = 0; phase < lanes; phase += each) {
    uint64_t words[lanes * 4];
    uint32_t count = 0;
    for (uint32_t i = phase; i < phase + each; i++)
      if (instruction.mask >> i & 1) {
        uint64_t address = instruction.addresses[i];
        for (uint64_t word = address / 4; word <= (address + bytes - 1) / 4; word++)
          if (count < lanes * 4) words[count++] = word;
      }
    if (!count) continue;
    uint64_t distinct = count_distinct(words, words + count);
    uint32_t banks[32] = {}, most = 0;
    for (uint64_t i = 0; i < distinct; i++) most = std::max(most, ++banks[words[i] % 32]);
    cost.units += most;
    cost.ideal += (distinct + 31) / 32;
  }
}

inline void add_sectors(Cost& cost, const Instruction& instruction, uint32_t bytes) {
  std::vector<uint64_t> sectors, addresses;
  for (uint32_t i = 0; i < lanes; i++)
    if (instruction.mask >> i & 1) {
      uint64_t address = instruction.addresses[i];
      addresses.push_back(address);
      for (uint64_t sector = address / 32; sector <= (address + bytes - 1) / 32; sector++)
        sectors.push_back(sector);
    }
  cost.units += count_distinct(sectors.data(), sectors.data() + sectors.size());
  uint64_t distinct = count_distinct(addresses.data(), addresses.data() + addresses.size());
  cost.ideal += (distinct * bytes + 31) / 32;
}

// The n-th time since a barrier that a lane comes by a place, it takes part in its warp's n-th
// instruction there. Where lanes went apart before, barriers bring them together again.
class Site {
 public:
  Site(uint32_t bytes, bool shared) : bytes_(bytes), shared_(shared) {}

  // The clock counts the barriers that the lane has passed.
  void add(uint32_t rank, uint32_t clock, uint64_t address) {
    if (rank / lanes >= warps_.size()) warps_.resize(rank / lanes + 1);
    Warp& warp = warps_[rank / lanes];
    if (clock > warp.clock) {
      for (const Instruction& instruction : warp.open) finish(instruction);
      warp = Warp{clock};
    }
    uint32_t lane = rank % lanes, at = warp.times[lane]++ - warp.finished;
    while (at >= warp.open.size()) warp.open.emplace_back();
    Instruction& instruction = warp.open[at];
    instruction.mask |= 1u << lane;
    instruction.addresses[lane] = address;
    while (!warp.open.empty() && warp.open.front().mask == ~0u) {
      finish(warp.open.front());
      warp.open.pop_front();
      warp.finished++;
    }
  }
  void end_block() {
    for (Warp& warp : warps_)
      for (const Instruction& instruction : warp.open) finish(instruction);
    warps_.clear();
  }
  const Cost& cost() const { return cost_; }

 private:
  struct Warp {
    uint32_t clock = 0, times[lanes] = {}, finished = 0;
    std::deque<Instruction> open;
  };

  void finish(const Instruction& instruction) {
    cost_.requests++;
    if (shared_) add_wavefronts(cost_, instruction, bytes_);
    else add_sectors(cost_, instruction, bytes_);
  }

  uint32_t bytes_;
  bool shared_;
  Cost cost_;
  std::vector<Warp> warps_;
};

// Place, memory, kind, bytes.
using SiteKey = std::tuple<uint32_t, uint32_t, Kind, uint32_t>;
using Sites = std::map<SiteKey, Site>;

}  // namespace
