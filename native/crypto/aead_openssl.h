// The AEADs of OpenSSL 3 behind the interface of aead.h.
#pragma once

#include "crypto/aead.h"

namespace securefabric::crypto {

// Null for a suite that OpenSSL does not have. Answers are not checked here: see find_provider.
const AeadProvider* openssl_provider(Suite suite);

}  // namespace securefabric::crypto
