// Work items over threads. The OpenMP runtime is the one that the process already has: its
// GOMP_parallel comes in as a pointer, so a kernel links none of its own. Which thread takes an
// item never changes what the item computes.
#pragma once

#include <sched.h>

#include <cstdint>

namespace flashrnn {

using ParallelRegion = void (*)(void (*)(void*), void*, unsigned, unsigned);

// A number that several threads count up. Not std::atomic: to read its headers takes a third of
// the time that a kernel takes to compile.
class Counter {
 public:
  // What it was before. Who adds sees all that those did who added before.
  int64_t add(int64_t n) { return __atomic_fetch_add(&value, n, __ATOMIC_ACQ_REL); }
  int64_t load() const { return __atomic_load_n(&value, __ATOMIC_ACQUIRE); }

 private:
  int64_t value = 0;
};

// item(index, worker) for index in [0, items); worker < threads tells apart who runs at once.
template <class Item>
void parallel_for(ParallelRegion region, int64_t threads, int64_t items, Item&& item) {
  if (items < threads) threads = items;
  if (region == nullptr || threads <= 1) {
    for (int64_t i = 0; i < items; ++i) item(i, int64_t{0});
    return;
  }
  struct Shared {
    Item& item;
    int64_t items;
    Counter next, workers;
  } shared{item, items};
  region(
      [](void* data) {
        auto& s = *static_cast<Shared*>(data);
        const int64_t worker = s.workers.add(1);
        for (int64_t i; (i = s.next.add(1)) < s.items;) s.item(i, worker);
      },
      &shared, static_cast<unsigned>(threads), 0);
}

// Where the threads of a team meet after each step. A step takes microseconds, so they wait awake;
// who waits for long lets others run, since the machine may have fewer free cores than threads.
class Meeting {
 public:
  // members: how many must arrive before anyone goes on; round: counted by each member for itself.
  void meet(int64_t members, int64_t& round) {
    if (members == 1) return;
    const int64_t all = members * ++round;
    if (arrived.add(1) + 1 == all) return;
    for (int spins = 0; arrived.load() < all; ++spins)
      if (spins < most_spins)
        pause();
      else
        sched_yield();
  }

 private:
  static constexpr int most_spins = 4000;
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  alignas(64) Counter arrived;
};

class Meetings {
 public:
  explicit Meetings(int64_t count) : all(new Meeting[count]) {}
  Meetings(const Meetings&) = delete;
  ~Meetings() { delete[] all; }
  Meeting& operator[](int64_t i) { return all[i]; }

 private:
  Meeting* all;
};

// What a work item knows of the team that computes it: its own rank, and where all meet.
struct Team {
  Meeting& meeting;
  int64_t rank, members, round = 0;

  void meet() { meeting.meet(members, round); }
  // This member's part of `count` things.
  int64_t begin(int64_t count) const { return count * rank / members; }
  int64_t end(int64_t count) const { return count * (rank + 1) / members; }
};

using TeamSize = int (*)();

// item(index, place, team) for index in [0, items), each by `members` threads at once, where so
// many run; place < threads tells apart which items are computed at once. The runtime may give
// fewer threads than were asked for, which only `size` tells: then each item has one.
template <class Item>
void parallel_teams(ParallelRegion region, TeamSize size, int64_t threads, int64_t members,
                    int64_t items, Item&& item) {
  if (region == nullptr || size == nullptr || members <= 1 || items * members > threads) {
    parallel_for(region, threads, items, [&](int64_t i, int64_t worker) {
      Meeting nobody;
      Team alone{nobody, 0, 1};
      item(i, worker, alone);
    });
    return;
  }
  struct Shared {
    Item& item;
    TeamSize size;
    int64_t items, members;
    Meetings meetings;
    Counter next, workers;
  } shared{item, size, items, members, Meetings(items)};
  region(
      [](void* data) {
        auto& s = *static_cast<Shared*>(data);
        const int64_t worker = s.workers.add(1);
        if (s.size() < s.items * s.members) {
          for (int64_t i; (i = s.next.add(1)) < s.items;) {
            Team alone{s.meetings[i], 0, 1};
            s.item(i, i, alone);
          }
          return;
        }
        const int64_t i = worker / s.members;
        Team team{s.meetings[i], worker % s.members, s.members};
        s.item(i, i, team);
      },
      &shared, static_cast<unsigned>(items * members), 0);
}

}  // namespace flashrnn
