// Switching between stacks: a few instructions on x86-64, ucontext elsewhere.
#pragma once

#include <sys/mman.h>

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

constexpr std::size_t stack_bytes = 256 << 10;

#if defined(__x86_64__)

// Saves what a call must preserve, leaves the stack in *from and goes on where `to` was left.
extern "C" void simt_switch(void** from, void* to);

struct Fiber {
  void* inside = nullptr;
  void* outside = nullptr;

  void prepare(char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + stack_bytes - 64);
    *--top = nullptr;  // where a call would have put the return address: keeps 16-byte alignment
    *--top = reinterpret_cast<void*>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    inside = top;
  }
  void resume() { simt_switch(&outside, inside); }
  void leave() { simt_switch(&inside, outside); }
};

#else

struct Fiber {
  ucontext_t inside, outside;

  void prepare(char* stack, void (*entry)()) {
    getcontext(&inside);
    inside.uc_stack.ss_sp = stack;
    inside.uc_stack.ss_size = stack_bytes;
    inside.uc_link = nullptr;
    makecontext(&inside, entry, 0);
  }
  void resume() { swapcontext(&outside, &inside); }
  void leave() { swapcontext(&inside, &outside); }
};

#endif

// Zero pages that exist once they are touched.
class Pages {
 public:
  explicit Pages(std::size_t bytes) : bytes_(bytes == 0 ? 1 : bytes) {
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    data_ = p == MAP_FAILED ? nullptr : static_cast<char*>(p);
  }
  ~Pages() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  char* data() const { return data_; }

 private:
  std::size_t bytes_;
  char* data_;
};

}  // namespace simt
