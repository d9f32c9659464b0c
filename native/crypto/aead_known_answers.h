// The test a provider passes before anybody gets it: one vector of the suite's standard must seal
// and open, and forgeries of it must not open.
#pragma once

#include "base/result.h"
#include "crypto/aead.h"

namespace securefabric::crypto {

// kConfig, naming provider and suite, when an answer is wrong or the suite has no vector here.
base::Status check_known_answers(const AeadProvider& provider);

}  // namespace securefabric::crypto
