// The kernels for CPUs with VAES, VPCLMULQDQ and AVX2, which this file alone is compiled for.
#include "crypto/kernels.h"

#if defined(__VAES__) && defined(__VPCLMULQDQ__) && defined(__AVX2__)

#include "crypto/kernel_table.h"

namespace securefabric::crypto {

const PacketKernels* vaes_kernels() {
  static constexpr PacketKernels kKernels = kernel_table<Wide256>("vaes");
  return &kKernels;
}

}  // namespace securefabric::crypto

#else  // another kind of CPU

namespace securefabric::crypto {

const PacketKernels* vaes_kernels() {
  return nullptr;
}

}  // namespace securefabric::crypto

#endif
