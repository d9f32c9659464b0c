// The kernels of one shape of vectors, as a table. Included by the kernel sources alone.
#pragma once

#include "crypto/kernel_aegis.h"
#include "crypto/kernel_gcm.h"
#include "crypto/kernels.h"

namespace securefabric::crypto {
namespace {

// `Two` is of two blocks, which AEGIS-256X2 has whatever the registers.
template <typename V, typename Two = V>
constexpr PacketKernels kernel_table(const char* name) {
  return {
      .name = name,
      .gcm_expand = Gcm<V>::expand,
      .gcm_start = Gcm<V>::start,
      .gcm_seal = Gcm<V>::seal,
      .gcm_open = Gcm<V>::open,
      .gcm_seal_finish = Gcm<V>::seal_finish,
      .gcm_open_finish = Gcm<V>::open_finish,
      .aegis_start = Aegis256x2<Two>::start,
      .aegis_seal = Aegis256x2<Two>::seal,
      .aegis_open = Aegis256x2<Two>::open,
      .aegis_seal_finish = Aegis256x2<Two>::seal_finish,
      .aegis_open_finish = Aegis256x2<Two>::open_finish,
  };
}

}  // namespace
}  // namespace securefabric::crypto
