// CUDA's own occupancy calculator as a filter. A line of input: major minor threads_per_sm
// shared_per_sm shared_per_block reserved | threads registers shared barriers percent, where
// percent is the carve-out preference, -1 for none. A line of output: blocks per multiprocessor.
#include <climits>
#include <cstdio>

#include "cuda_occupancy.h"

int main() {
    int major, minor, threads_per_sm, threads, registers, barriers, percent;
    long shared_per_sm, shared_per_block, reserved, shared;
    while (std::scanf("%d %d %d %ld %ld %ld %d %d %ld %d %d", &major, &minor, &threads_per_sm,
                      &shared_per_sm, &shared_per_block, &reserved, &threads, &registers, &shared,
                      &barriers, &percent) == 11) {
        cudaOccDeviceProp device;
        device.computeMajor = major;
        device.computeMinor = minor;
        device.maxThreadsPerBlock = 1024;
        device.maxThreadsPerMultiprocessor = threads_per_sm;
        device.regsPerBlock = 65536;
        device.regsPerMultiprocessor = 65536;
        device.warpSize = 32;
        device.sharedMemPerBlock = 48 << 10;
        device.sharedMemPerMultiprocessor = shared_per_sm;
        device.numSms = 1;
        device.sharedMemPerBlockOptin = shared_per_block;
        device.reservedSharedMemPerBlock = reserved;
        cudaOccFuncAttributes function;
        function.maxThreadsPerBlock = INT_MAX;
        function.numRegs = registers;
        function.sharedSizeBytes = 0;
        function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        function.maxDynamicSharedSizeBytes = shared;
        function.numBlockBarriers = barriers;
        cudaOccDeviceState state;
        state.carveoutConfig = percent;
        cudaOccResult result;
        auto status = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &function, &state,
                                                              threads, shared);
        std::printf("%d\n", status == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1);
    }
}
