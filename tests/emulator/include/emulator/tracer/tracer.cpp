// The hooks that the compiler calls before each access of a traced kernel: the thread sanitizer's,
// without its library. Compiled apart from the kernels, for it must not be traced itself.
#include <cstdio>
#include <cstring>
#include <unordered_map>

#include "counting.h"

namespace {

using emulator::trace::Launch;

// Where an access is made: an address of code, or, of what the hooks do not see, a line.
struct Place {
  uint64_t pc;
  const char* file;
  int line;
};

struct Tracer {
  Launch launch;
  std::vector<Shadow> shadows;
  Clocks clocks;
  std::vector<Place> places{Place{}};    // the first one is none
  std::unordered_map<uint64_t, uint32_t> known_codes;
  std::map<std::pair<const char*, int>, uint32_t> known_lines;
  Sites sites;
  uint64_t block = 0;
  bool counted = false;
  // Lines of 64 bytes in which nothing is watched, as the last search of each slot found: most
  // accesses are to stacks and to the emulator's own data.
  static constexpr uint64_t slots = 1 << 12;
  uint64_t quiet[slots];
};

Tracer tracer;

uint32_t find_place(const Place& place) {
  uint32_t& known = place.file ? tracer.known_lines[{place.file, place.line}]
                               : tracer.known_codes[place.pc];
  if (!known) {
    known = uint32_t(tracer.places.size());
    tracer.places.push_back(place);
  }
  return known;
}

bool is_quiet(const void* address) {
  uint64_t line = reinterpret_cast<uint64_t>(address) / 64;
  return tracer.quiet[line % Tracer::slots] == line;
}

Shadow* find_memory(const void* address) {
  uint64_t byte = reinterpret_cast<uint64_t>(address), line = byte / 64;
  bool quiet = true;
  for (Shadow& shadow : tracer.shadows) {
    uint64_t first = reinterpret_cast<uint64_t>(shadow.memory().address);
    uint64_t end = first + shadow.memory().size;
    if (first <= byte && byte < end) return &shadow;
    quiet &= first / 64 > line || (end + 63) / 64 <= line;
  }
  if (quiet) tracer.quiet[line % Tracer::slots] = line;
  return nullptr;
}

struct Words {
  char text[256];
};

// A pc is left to Python, which finds its line.
Words describe_place(uint32_t number) {
  const Place& place = tracer.places[number];
  Words words;
  if (place.file) snprintf(words.text, sizeof words.text, "%s:%d", place.file, place.line);
  else snprintf(words.text, sizeof words.text, "{pc %llx}", (unsigned long long)place.pc);
  return words;
}

Words describe(const Access& access, bool with_block) {
  static const char* const names[] = {"read", "write", "atomic", "cp.async"};
  const uint32_t *size = tracer.launch.block, *grid = tracer.launch.grid;
  uint32_t thread = access.thread, block = access.block;
  char where[80] = "";
  if (with_block)
    snprintf(where, sizeof where, "block (%u, %u, %u), ", block % grid[0],
             block / grid[0] % grid[1], block / (grid[0] * grid[1]));
  Words words;
  snprintf(words.text, sizeof words.text, "%s at %s by %sthread (%u, %u, %u)", names[access.kind],
           describe_place(access.place).text, where, thread % size[0], thread / size[0] % size[1],
           thread / (size[0] * size[1]));
  return words;
}

void report_race(const Memory& memory, const void* address, const Access& first,
                 const Access& second) {
  bool between_blocks = first.block != second.block;
  char text[1024];
  snprintf(text, sizeof text, "race on %s, %s+%llu: %s, %s, %s",
           memory.shared ? "shared memory" : "global memory", memory.name,
           (unsigned long long)(static_cast<const char*>(address) - memory.address),
           describe(first, between_blocks).text, describe(second, between_blocks).text,
           between_blocks ? "between blocks that nothing orders"
           : first.flying ? "before anybody waited for the copy"
                          : "and no barrier between");
  emulator::trace::fail(text);
}

__attribute__((noinline)) void search_and_note(Kind kind, const void* address, uint32_t bytes,
                                               const Place& place) {
  uint32_t rank = emulator::trace::running;
  Shadow* shadow = find_memory(address);
  if (!shadow) return;
  bool copy = kind == Kind::copy;
  Access now{find_place(place), uint32_t(tracer.block), tracer.clocks.now(rank), uint16_t(rank),
             uint8_t(kind), copy};
  if (const Access* other = shadow->note(address, bytes, now, tracer.clocks))
    report_race(shadow->memory(), address, *other, now);
  if (!tracer.counted) return;
  uint32_t memory = uint32_t(shadow - tracer.shadows.data());
  SiteKey key{now.place, memory, copy ? Kind::write : kind, bytes};
  auto site = tracer.sites.try_emplace(key, bytes, shadow->memory().shared).first;
  site->second.add(rank, now.clock, reinterpret_cast<uint64_t>(address));
}

inline void note(Kind kind, const void* address, uint32_t bytes, const Place& place) {
  if (emulator::trace::running == emulator::trace::nobody || !bytes || is_quiet(address)) return;
  search_and_note(kind, address, bytes, place);
}

}  // namespace

namespace emulator::trace {

uint32_t running = nobody;

void begin_launch(const Launch& launch) {
  tracer.launch = launch;
  tracer.launch.memories = nullptr;
  tracer.shadows.clear();
  tracer.sites.clear();
  memset(tracer.quiet, 0, sizeof tracer.quiet);
  for (uint32_t i = 0; i < launch.count; i++) tracer.shadows.emplace_back(launch.memories[i]);
  tracer.clocks.resize(launch.block[0] * launch.block[1] * launch.block[2]);
}

void begin_block(uint64_t number, bool counted) {
  tracer.block = number;
  tracer.counted = counted;
  tracer.clocks.begin_block();
}

void end_block() {
  if (tracer.counted)
    for (auto& [key, site] : tracer.sites) site.end_block();
}

void order(const uint32_t* ranks, uint32_t count) { tracer.clocks.order(ranks, count); }
void order_all() { tracer.clocks.order_all(); }

void record(Kind kind, const void* address, uint32_t bytes, const char* file, int line) {
  note(kind, address, bytes, {0, file, line});
}

void begin_copy(const void* to, uint32_t bytes, const char* file, int line) {
  note(Kind::copy, to, bytes, {0, file, line});
}

void end_copy(const void* to, uint32_t bytes) {
  if (Shadow* shadow = find_memory(to)) shadow->land(to, bytes, running, tracer.clocks);
}

}  // namespace emulator::trace

// The hooks

#define EMULATOR_HOOK(name, kind, bytes)                                      \
  void name(void* address) {                                                  \
    note(kind, address, bytes, {uint64_t(__builtin_return_address(0)), nullptr, 0}); \
  }
#define EMULATOR_HOOKS(bytes)                                                 \
  EMULATOR_HOOK(__tsan_read##bytes, Kind::read, bytes)                        \
  EMULATOR_HOOK(__tsan_write##bytes, Kind::write, bytes)                      \
  EMULATOR_HOOK(__tsan_unaligned_read##bytes, Kind::read, bytes)              \
  EMULATOR_HOOK(__tsan_unaligned_write##bytes, Kind::write, bytes)

extern "C" {
EMULATOR_HOOKS(1)
EMULATOR_HOOKS(2)
EMULATOR_HOOKS(4)
EMULATOR_HOOKS(8)
EMULATOR_HOOKS(16)
void __tsan_read_range(void* address, unsigned long bytes) {
  note(Kind::read, address, uint32_t(bytes), {uint64_t(__builtin_return_address(0)), nullptr, 0});
}
void __tsan_write_range(void* address, unsigned long bytes) {
  note(Kind::write, address, uint32_t(bytes), {uint64_t(__builtin_return_address(0)), nullptr, 0});
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// What Python reads after a launch; trace.py has the same fields.
struct emulator_site {
  uint64_t pc, requests, units, ideal;
  const char *file, *array;
  uint32_t line, kind, bytes, shared;
};

__attribute__((visibility("default"))) uint32_t emulator_list_sites(emulator_site* list,
                                                                    uint32_t most) {
  uint32_t count = 0;
  for (const auto& [key, site] : tracer.sites) {
    if (count == most) break;
    auto [place, memory, kind, bytes] = key;
    const Place& where = tracer.places[place];
    const Memory& what = tracer.shadows[memory].memory();
    const Cost& cost = site.cost();
    list[count++] = {where.pc,   cost.requests,        cost.units,     cost.ideal,
                     where.file, what.name,            uint32_t(where.line), uint32_t(kind),
                     bytes,      uint32_t(what.shared)};
  }
  return uint32_t(tracer.sites.size());
}
}
