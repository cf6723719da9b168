// The part of the CUDA driver that runtime/cuda_driver.py calls: says what it was asked, one line per
// call, and does nothing. Structures as cuda.h has them. FAKE_REFUSES names a call that fails.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

struct Attribute {
  int id;
  char pad[4];
  union {
    char bytes[64];
    int number;
    unsigned size[3];
  };
};

struct Config {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  Attribute* attributes;
  unsigned count;
};

void* context;
const int stated = 41, spilled = 12;

template <class... Values>
int told(const char* call, const char* form, Values... values) {
  std::printf("%s ", call);
  std::printf(form, values...);
  std::printf("\n");
  std::fflush(stdout);
  const char* refused = std::getenv("FAKE_REFUSES");
  return refused && std::strcmp(refused, call) == 0 ? 700 : 0;  // CUDA_ERROR_ILLEGAL_ADDRESS
}

int told_of(const char* call, const Config& c) {
  const int status = told(call, "grid %u %u %u block %u %u %u shared %u stream %p", c.grid[0],
                          c.grid[1], c.grid[2], c.block[0], c.block[1], c.block[2], c.shared_bytes,
                          c.stream);
  for (unsigned i = 0; i < c.count; ++i) {
    const Attribute& a = c.attributes[i];
    if (a.id == 4) told(" cluster", "%u %u %u", a.size[0], a.size[1], a.size[2]);
    if (a.id == 2) told(" cooperative", "%d", a.number);
  }
  return status;
}

}  // namespace

extern "C" {
// How all others are found; those that are not here are null.
int cuGetProcAddress_v2(const char* name, void** found, int, uint64_t, int*) {
  Dl_info own;
  dladdr(&context, &own);
  *found = dlsym(dlopen(own.dli_fname, RTLD_LAZY), name);
  return 0;
}
int cuInit(unsigned flags) { return told("cuInit", "%u", flags); }
int cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}
int cuCtxGetCurrent(void** now) {
  *now = context;
  return 0;
}
int cuCtxSetCurrent(void* now) {
  context = now;
  return told("cuCtxSetCurrent", "%p", now);
}
int cuDeviceGet(int* device, int index) {
  *device = index;
  return told("cuDeviceGet", "%d", index);
}
int cuDevicePrimaryCtxRetain(void** of, int device) {
  *of = reinterpret_cast<void*>(0x100 + device);
  return 0;
}
int cuModuleLoadData(void** module, const void* image) {
  *module = reinterpret_cast<void*>(0x200);
  return told("cuModuleLoadData", "%.4s", static_cast<const char*>(image));
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = reinterpret_cast<void*>(0x300);
  return told("cuModuleGetFunction", "%p %s", module, name);
}
int cuFuncSetAttribute(void* function, int kind, int value) {
  return told("cuFuncSetAttribute", "%p %d %d", function, kind, value);
}
int cuFuncGetAttribute(int* value, int kind, void* function) {
  *value = kind == 3 ? spilled : stated;
  return told("cuFuncGetAttribute", "%d %p", kind, function);
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void*, int threads, std::size_t bytes) {
  *blocks = 2;
  return told("cuOccupancyMaxActiveBlocksPerMultiprocessor", "%d %zu", threads, bytes);
}
int cuOccupancyMaxActiveClusters(int* clusters, void*, const Config* config) {
  *clusters = 3;
  if (std::getenv("FAKE_HAS_NO_SUCH_CLUSTER")) return 912;  // CUDA_ERROR_INVALID_CLUSTER_SIZE
  return told_of("cuOccupancyMaxActiveClusters", *config);
}
int cuLaunchKernelEx(const Config* config, void* function, void** parameters, void**) {
  const int status = told_of("cuLaunchKernelEx", *config);
  int64_t fields[4];
  std::memcpy(fields, parameters[0], sizeof(fields));
  double last;
  std::memcpy(&last, &fields[3], sizeof(last));
  told(" arguments", "%p %lld %lld %lld %g", function, static_cast<long long>(fields[0]),
       static_cast<long long>(fields[1]), static_cast<long long>(fields[2]), last);
  return status;
}
}
