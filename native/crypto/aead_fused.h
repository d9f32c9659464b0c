// Packet ciphers of our own, for x86: AES-256-GCM and AEGIS-256X2 by the kernels of kernels.h.
//
// A seal gathers its parts in one pass over the bytes and allocates nothing; the expanded key of a
// GCM lies in secret memory, and AEGIS needs none.
#pragma once

#include <vector>

#include "crypto/aead.h"
#include "crypto/kernels.h"

namespace securefabric::crypto {

// The providers of the suite that a CPU with these features can run, fastest first. They live for
// ever. Empty for a suite or a CPU without kernels.
std::vector<const AeadProvider*> fused_providers(Suite suite, CpuFeatures cpu);

}  // namespace securefabric::crypto
