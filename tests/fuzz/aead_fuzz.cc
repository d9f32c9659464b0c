// Every provider of a suite against every other: what one seals all open, with equal bytes; what
// is damaged none opens; what nobody sealed none opens, and none of it comes out.
//
// Input: suite, length of the header, three places to cut the packet, seed of key and nonce; the
// rest is the packet's plaintext and, a second time, a packet that nobody sealed.
#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/random.h"
#include "crypto/aead.h"
#include "crypto/slow_aegis.h"

namespace securefabric::crypto {
namespace {

// Independent of all providers; empty where OpenSSL, which is one of them, serves as the reference.
ByteVector reference(Suite suite, base::Bytes key, base::Bytes nonce, base::Bytes aad,
                     base::Bytes data) {
  if (suite != Suite::kAegis256x2) return {};
  return slow_aegis256x2_seal(key, nonce, aad, data);
}

void check_opens(AeadKey& key, base::Bytes nonce, base::Bytes aad, base::Bytes sealed,
                 base::Bytes expected) {
  ByteVector opened(sealed.size() - kAuthTagBytes, 0xEE);
  SF_CHECK(key.open(nonce, aad, sealed, opened));
  SF_CHECK(std::equal(opened.begin(), opened.end(), expected.begin(), expected.end()));
}

void check_refuses(AeadKey& key, base::Bytes nonce, base::Bytes aad, base::Bytes sealed) {
  ByteVector opened(sealed.size() - kAuthTagBytes, 0xEE);
  SF_CHECK(!key.open(nonce, aad, sealed, opened));
  SF_CHECK(std::all_of(opened.begin(), opened.end(), [](uint8_t byte) { return byte == 0; }));
}

void run(base::Bytes input) {
  base::ByteReader reader(input);
  const Suite suite = all_suites()[reader.u8() % all_suites().size()];
  const size_t aad_bytes = reader.u8();
  std::array<size_t, 3> cuts = {reader.u8(), reader.u16(), reader.u16()};
  base::Random random(reader.u16());
  const base::Bytes data = reader.rest();
  const ByteVector key_bytes = random_bytes(random, suite_facts(suite).key_bytes);
  const ByteVector nonce = random_bytes(random, suite_facts(suite).nonce_bytes);
  const ByteVector aad = random_bytes(random, aad_bytes);

  for (size_t& cut : cuts) cut %= data.size() + 1;
  std::sort(cuts.begin(), cuts.end());
  const std::array<base::Bytes, 4> parts = {
      data.first(cuts[0]), data.subspan(cuts[0], cuts[1] - cuts[0]),
      data.subspan(cuts[1], cuts[2] - cuts[1]), data.subspan(cuts[2])};

  ByteVector expected = reference(suite, key_bytes, nonce, aad, data);
  for (const AeadProvider* provider : candidate_providers(suite)) {
    const auto key = provider->make_key(key_bytes);
    ByteVector sealed(data.size() + kAuthTagBytes);
    key->seal(nonce, aad, parts, sealed);
    if (expected.empty()) expected = sealed;
    SF_CHECK_MSG(sealed == expected, provider->name());
    check_opens(*key, nonce, aad, sealed, data);
    const size_t bit = random.below(8 * sealed.size());
    sealed[bit / 8] = static_cast<uint8_t>(sealed[bit / 8] ^ 1 << bit % 8);
    check_refuses(*key, nonce, aad, sealed);
    if (data.size() >= kAuthTagBytes) check_refuses(*key, nonce, aad, data);
  }
}

}  // namespace
}  // namespace securefabric::crypto

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  securefabric::crypto::run({data, size});
  return 0;
}
