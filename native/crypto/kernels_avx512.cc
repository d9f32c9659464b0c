// The kernels for CPUs that also have AVX-512, which this file alone is compiled for.
#include "crypto/kernels.h"

#if defined(__VAES__) && defined(__VPCLMULQDQ__) && defined(__AVX512F__) && \
    defined(__AVX512BW__) && defined(__AVX512VL__)

#include "crypto/kernel_table.h"

namespace securefabric::crypto {

const PacketKernels* avx512_kernels() {
  static constexpr PacketKernels kKernels = kernel_table<Wide512, Wide256>("avx512");
  return &kKernels;
}

}  // namespace securefabric::crypto

#else  // another kind of CPU

namespace securefabric::crypto {

const PacketKernels* avx512_kernels() {
  return nullptr;
}

}  // namespace securefabric::crypto

#endif
