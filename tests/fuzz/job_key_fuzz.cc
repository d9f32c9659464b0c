// Key files: whatever parses has a key id and a suite, and proves what it proved; the text is wiped
// in any case, and no message holds a piece of it.
#include <algorithm>
#include <string>
#include <vector>

#include "base/check.h"
#include "crypto/job_key.h"

namespace crypto = securefabric::crypto;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 2 * crypto::JobKey::kTextBytesMax) return 0;
  std::vector<uint8_t> text(data, data + size);
  const auto key = crypto::JobKey::parse(text);
  SF_CHECK(std::all_of(text.begin(), text.end(), [](uint8_t byte) { return byte == 0; }));
  if (!key.ok()) {
    const std::string& message = key.error().message;
    SF_CHECK(
        std::all_of(message.begin(), message.end(), [](char c) { return c >= ' ' && c <= '~'; }));
    return 0;
  }
  SF_CHECK(key.value().key_id().size() == 2 * crypto::JobKey::kKeyIdBytes);
  const std::string text_to_prove = "message";
  const auto message = securefabric::base::as_bytes(text_to_prove);
  SF_CHECK(key.value().verify_evidence(message, key.value().evidence(message)));
  return 0;
}
