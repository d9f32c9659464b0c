// The kernels for CPUs with AES, PCLMULQDQ and AVX, which this file alone is compiled for.
#include "crypto/kernels.h"

#if defined(__AES__) && defined(__PCLMUL__) && defined(__AVX__)

#include "crypto/kernel_table.h"

namespace securefabric::crypto {

const PacketKernels* aesni_kernels() {
  static constexpr PacketKernels kKernels = kernel_table<Pair128>("aes-ni");
  return &kKernels;
}

}  // namespace securefabric::crypto

#else  // another kind of CPU

namespace securefabric::crypto {

const PacketKernels* aesni_kernels() {
  return nullptr;
}

}  // namespace securefabric::crypto

#endif
