// The job key: what every member of a job holds, and nobody else. A file of four lines:
//
//   securefabric-job-key v1
//   id: 0123456789abcdef
//   suite: aes-256-gcm
//   key: <64 hexadecimal digits>
//
// The lines come in this order; lines that start with '#' and empty lines may stand anywhere;
// everything else (other case, spaces, carriage returns, a second field of a name) is an error. The
// suite is a constant of the job: it stands here so that nothing is left to negotiate.
//
//   root       = HKDF-Extract("securefabric job key v1", key)
//   job_secret = Label(root, "job secret", suite (1 byte) ‖ id (8 bytes))
//   evidence   = HMAC-SHA256(Label(root, "evidence", the same), message)
//   store      = Label(root, "store server" or "store client", the same)
//
// The job secret goes into every link secret, evidence into roster entries, the store's secrets are
// the private CURVE keys of the encrypted store's two ends. Label is expand_label
// of kdf.h with 32 bytes of output.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/result.h"
#include "crypto/aead.h"
#include "crypto/kdf.h"
#include "crypto/secret.h"

namespace securefabric::crypto {

// An end of the encrypted store.
enum class StoreRole : uint8_t { kServer, kClient };

class JobKey {
 public:
  static constexpr size_t kKeyBytes = 32;
  static constexpr size_t kKeyIdBytes = 8;
  // Of a key file: the fields take about 150 bytes, the rest is room for comments.
  static constexpr size_t kTextBytesMax = 4096;

  // Wipes `text`, whatever comes out. kConfig with the line and the fix; the caller knows
  // the file's name. No message holds any of the content.
  static base::Result<JobKey> parse(base::MutableBytes text);

  // A new key file's text from kKeyBytes random bytes, which are wiped. The key id is derived from
  // them one-way, so that two keys have two ids.
  static SecretBuffer format(Suite suite, base::MutableBytes random);

  // 16 hexadecimal digits; public, for messages and for telling jobs apart.
  const std::string& key_id() const { return key_id_; }
  Suite suite() const { return suite_; }

  // Proves possession of the job key for `message` (a roster entry).
  Hash evidence(base::Bytes message) const;
  bool verify_evidence(base::Bytes message, base::Bytes evidence) const;

  // The last input of every link secret (key_schedule.h).
  base::Bytes job_secret() const { return job_secret_.view(); }
  SecretBuffer copy_job_secret() const;

  // The private Curve25519 key that every member has for this end of the job's store.
  base::Bytes store_secret(StoreRole role) const {
    return role == StoreRole::kServer ? store_server_.view() : store_client_.view();
  }

 private:
  JobKey(Suite suite, const std::array<uint8_t, kKeyIdBytes>& key_id, base::Bytes key);

  Suite suite_;                // of the whole job
  std::string key_id_;         // 16 hexadecimal digits
  SecretBuffer job_secret_;    // 32 bytes
  SecretBuffer evidence_key_;  // 32 bytes
  SecretBuffer store_server_;  // 32 bytes
  SecretBuffer store_client_;  // 32 bytes
};

}  // namespace securefabric::crypto
