// Warp collectives: shuffles, votes, reductions and tensor-core instructions are all one thing.
#pragma once

#include "block.h"

namespace emulator {

inline uint32_t lane() { return block->current->rank % lanes; }

// Every lane of `mask` waits with its input and a place for its output; the last one to come runs
// `work(inputs, outputs, mask)` for all of them, arrays indexed by lane.
template <class Out, class In, class Work>
inline Out gather(Site site, uint32_t mask, const In& in, Work work) {
  Block& b = *block;
  Thread& self = *b.current;
  uint32_t first = self.rank / lanes * lanes;
  Out out{};
  b.report->collectives++;
  if (!(mask >> lane() & 1))
    fail("%s: lane %u calls, but is not in mask 0x%08x", Here(site).text, lane(), mask);
  Warp& warp = b.warps[self.rank / lanes];
  Gathering* gathering = nullptr;
  for (uint32_t i = 0; i < warp.count; i++) {
    Gathering& other = warp.gatherings[i];
    if (other.mask == mask) gathering = &other;
    else if (other.arrived & mask && other.mask >> lane() & 1)  // each waits for the other
      fail("%s: mask 0x%08x overlaps 0x%08x of the unfinished %s", Here(site).text, mask, other.mask,
           Here(other.site).text);
  }
  if (!gathering) {
    if (warp.count == Warp::most) fail("more than %u masks under way in one warp", Warp::most);
    gathering = &warp.gatherings[warp.count++];
    *gathering = {mask, 0, site};
  } else if (strcmp(gathering->site.what, site.what)) {
    fail("warp collectives mixed: this lane is in %s, others are in %s", Here(site).text,
         Here(gathering->site).text);
  }
  self.in = &in;
  self.out = &out;
  self.state = State::in_collective;
  self.site = site;
  self.mask = mask;
  gathering->arrived |= 1u << lane();
  if (gathering->arrived != mask) {
    give_way();
    return out;
  }
  const In* ins[lanes];
  Out* outs[lanes];
  for (uint32_t i = 0; i < lanes; i++)
    if (mask >> i & 1) {
      ins[i] = static_cast<const In*>(b.threads[first + i].in);
      outs[i] = static_cast<Out*>(b.threads[first + i].out);
    }
  *gathering = warp.gatherings[--warp.count];
  work(ins, outs, mask);
  // In order the last lane simply goes on; shuffled, any of them may be first.
  for (uint32_t i = 0; i < lanes; i++)
    if (mask >> i & 1 && (i != lane() || is_shuffled())) make_ready(b.threads[first + i]);
  if (is_shuffled()) give_way();
  else self.state = State::ready;
  return out;
}

}  // namespace emulator
