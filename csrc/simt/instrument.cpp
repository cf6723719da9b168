// Plain loads and stores of a kernel: g++ calls these where -fsanitize=thread is given for its
// translation unit, and they stand in for that sanitizer's own library.
#include <link.h>
#include <pthread.h>

#include "simt/machine.hpp"

namespace simt {

namespace {

struct Range {
  const char *from = nullptr, *to = nullptr;
  bool holds(const char* p) const { return p >= from && p < to; }
};

// What a kernel reads that no launch names: the stack of the launching thread, where its arguments
// are, and the constants of the library that it is in.
Range own_stack() {
  pthread_attr_t attributes;
  void* base = nullptr;
  size_t size = 0;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &base, &size);
  pthread_attr_destroy(&attributes);
  return {static_cast<char*>(base), static_cast<char*>(base) + size};
}

int find_image(dl_phdr_info* info, size_t, void* found) {
  const char* here = reinterpret_cast<const char*>(&find_image);
  Range image{reinterpret_cast<const char*>(~std::uintptr_t{0}), nullptr};
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    const char* at = reinterpret_cast<const char*>(info->dlpi_addr + segment.p_vaddr);
    image.from = std::min(image.from, at);
    image.to = std::max(image.to, at + segment.p_memsz);
  }
  if (!image.holds(here)) return 0;
  *static_cast<Range*>(found) = image;
  return 1;
}

Range own_image() {
  Range image;
  dl_iterate_phdr(find_image, &image);
  return image;
}

void access(const void* p, uint64_t bytes, Access kind, void* caller) {
  if (machine == nullptr) return;
  const char* q = static_cast<const char*>(p);
  static const Range image = own_image();
  thread_local const Range stack = own_stack();
  if (Range{machine->stacks, machine->stacks_end}.holds(q) || stack.holds(q)) return;
  if (kind == Access::read && image.holds(q)) return;
  check(p, bytes, kind, Place::address(caller));
}

}  // namespace

}  // namespace simt

#define CALLER __builtin_return_address(0)
#define ACCESSES(bytes)                                                                      \
  void __tsan_read##bytes(void* p) { access(p, bytes, Access::read, CALLER); }               \
  void __tsan_write##bytes(void* p) { access(p, bytes, Access::write, CALLER); }             \
  void __tsan_unaligned_read##bytes(void* p) { access(p, bytes, Access::read, CALLER); }     \
  void __tsan_unaligned_write##bytes(void* p) { access(p, bytes, Access::write, CALLER); }

extern "C" {
using simt::Access, simt::access;
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, unsigned long bytes) { access(p, bytes, Access::read, CALLER); }
void __tsan_write_range(void* p, unsigned long bytes) { access(p, bytes, Access::write, CALLER); }
void __tsan_init() {}
}
