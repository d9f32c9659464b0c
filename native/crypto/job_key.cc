#include "crypto/job_key.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/check.h"

namespace securefabric::crypto {
namespace {

using base::Bytes;
using base::Error;
using base::ErrorCode;
using base::MutableBytes;
using base::Result;
using base::Status;

constexpr std::string_view kMagic = "securefabric-job-key v1";
constexpr std::string_view kExtractSalt = "securefabric job key v1";
constexpr const char* kFix = "; make a new one with `securefabric keygen FILE`";

// Wipes what it was given when the scope ends, however it ends.
class WipeAtExit {
 public:
  explicit WipeAtExit(MutableBytes bytes) : bytes_(bytes) {}
  ~WipeAtExit() {
    if (!bytes_.empty()) OPENSSL_cleanse(bytes_.data(), bytes_.size());
  }
  WipeAtExit(const WipeAtExit&) = delete;
  WipeAtExit& operator=(const WipeAtExit&) = delete;

 private:
  MutableBytes bytes_;  // somebody else's
};

// Yields the lines that count, as views into the caller's text: no secret is copied.
class Lines {
 public:
  explicit Lines(std::string_view text) : rest_(text) {}

  // The next line that is neither empty nor a comment, without its end; empty at the end.
  std::string_view next() {
    while (!rest_.empty()) {
      const size_t end = std::min(rest_.find('\n'), rest_.size());
      const std::string_view line = rest_.substr(0, end);
      rest_.remove_prefix(std::min(end + 1, rest_.size()));
      ++number_;
      if (!line.empty() && line.front() != '#') return line;
    }
    ++number_;
    return {};
  }

  // What is wrong with the line that next() gave last. Messages hold no part of the text: any of
  // it may be the key.
  Error error(const std::string& what) const {
    return {ErrorCode::kConfig, "line " + std::to_string(number_) + ": " + what + kFix};
  }

 private:
  std::string_view rest_;  // not yet read
  size_t number_ = 0;      // of the line that next() gave last, from 1
};

// The value of the next line, which has to be "<name>: <value>".
Result<std::string_view> take_field(Lines& lines, std::string_view name) {
  const std::string_view line = lines.next();
  const std::string prefix = std::string(name) + ": ";
  if (!line.starts_with(prefix)) return lines.error("expected `" + prefix + "...`");
  return line.substr(prefix.size());
}

// 0..15, or 16 for anything that is not a lower-case hexadecimal digit.
unsigned digit_of(char c) {
  if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a') + 10;
  return 16;
}

Status decode_hex(const Lines& lines, std::string_view name, std::string_view hex,
                  MutableBytes out) {
  const std::string needs = std::to_string(out.size() * 2);
  if (hex.size() != out.size() * 2) {
    return lines.error(std::string(name) + " has " + std::to_string(hex.size()) +
                       " digits and needs exactly " + needs + " (" + std::to_string(out.size()) +
                       " random bytes in hexadecimal)");
  }
  for (size_t i = 0; i < out.size(); ++i) {
    const unsigned high = digit_of(hex[2 * i]);
    const unsigned low = digit_of(hex[2 * i + 1]);
    if (high > 15 || low > 15) {
      return lines.error(std::string(name) + " needs " + needs +
                         " lower-case hexadecimal digits and nothing else");
    }
    out[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return base::ok_status();
}

Bytes text_bytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// Writes the digits without leaving a copy anywhere else.
void append_hex(base::ByteWriter& out, Bytes bytes) {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  for (const uint8_t byte : bytes) {
    out.u8(static_cast<uint8_t>(kDigits[byte >> 4]));
    out.u8(static_cast<uint8_t>(kDigits[byte & 15]));
  }
}

}  // namespace

JobKey::JobKey(Suite suite, const std::array<uint8_t, kKeyIdBytes>& key_id, Bytes key)
    : suite_(suite), key_id_(base::to_hex(key_id)) {
  const SecretBuffer root = hkdf_extract(text_bytes(kExtractSalt), key);
  std::array<uint8_t, 1 + kKeyIdBytes> context;
  base::ByteWriter writer(context);
  writer.u8(static_cast<uint8_t>(suite));
  writer.bytes(key_id);
  job_secret_ = expand_label(root.view(), "job secret", context, kHashBytes);
  evidence_key_ = expand_label(root.view(), "evidence", context, kHashBytes);
  store_server_ = expand_label(root.view(), "store server", context, kHashBytes);
  store_client_ = expand_label(root.view(), "store client", context, kHashBytes);
}

Result<JobKey> JobKey::parse(MutableBytes text) {
  const WipeAtExit wipe(text);
  if (text.size() > kTextBytesMax) {
    return Error{ErrorCode::kConfig, "larger than " + std::to_string(kTextBytesMax) +
                                         " bytes, so this is no job key" + kFix};
  }
  const std::string_view all(reinterpret_cast<const char*>(text.data()), text.size());
  if (all.find("\r\n") != std::string_view::npos) {
    return Error{ErrorCode::kConfig,
                 "its lines end as on Windows (CR LF); `sed -i 's/\\r$//' FILE` mends that"};
  }
  Lines lines(all);
  if (lines.next() != kMagic) return lines.error("expected `" + std::string(kMagic) + "`");

  const Result<std::string_view> id_text = take_field(lines, "id");
  if (!id_text.ok()) return id_text.error();
  std::array<uint8_t, kKeyIdBytes> id;
  const Status id_status = decode_hex(lines, "id", id_text.value(), id);
  if (!id_status.ok()) return id_status.error();

  const Result<std::string_view> suite_text = take_field(lines, "suite");
  if (!suite_text.ok()) return suite_text.error();
  const Result<Suite> suite = parse_suite(suite_text.value());
  if (!suite.ok()) return lines.error(suite.error().message);

  const Result<std::string_view> key_text = take_field(lines, "key");
  if (!key_text.ok()) return key_text.error();
  SecretBuffer key = SecretBuffer::allocate(kKeyBytes);
  const Status key_status = decode_hex(lines, "key", key_text.value(), key.bytes());
  if (!key_status.ok()) return key_status.error();

  if (!lines.next().empty()) return lines.error("nothing may follow the key");
  return JobKey(suite.value(), id, key.view());
}

SecretBuffer JobKey::format(Suite suite, MutableBytes random) {
  SF_CHECK_MSG(random.size() == kKeyBytes, std::to_string(random.size()));
  const SecretBuffer key = SecretBuffer::copy_and_wipe(random);
  const SecretBuffer id = expand_label(key.view(), "key id", {}, kKeyIdBytes);
  const std::string_view name = suite_name(suite);
  const size_t size =
      kMagic.size() + 1 + 4 + 2 * kKeyIdBytes + 1 + 7 + name.size() + 1 + 5 + 2 * kKeyBytes + 1;
  SecretBuffer text = SecretBuffer::allocate(size);
  base::ByteWriter writer(text.bytes());
  writer.bytes(text_bytes(kMagic));
  writer.bytes(text_bytes("\nid: "));
  append_hex(writer, id.view());
  writer.bytes(text_bytes("\nsuite: "));
  writer.bytes(text_bytes(name));
  writer.bytes(text_bytes("\nkey: "));
  append_hex(writer, key.view());
  writer.bytes(text_bytes("\n"));
  SF_CHECK(writer.remaining() == 0);
  return text;
}

Hash JobKey::evidence(Bytes message) const {
  return hmac_sha256(evidence_key_.view(), message);
}

SecretBuffer JobKey::copy_job_secret() const {
  SecretBuffer copy = SecretBuffer::allocate(job_secret_.size());
  std::copy(job_secret_.view().begin(), job_secret_.view().end(), copy.bytes().begin());
  return copy;
}

bool JobKey::verify_evidence(Bytes message, Bytes evidence) const {
  return constant_time_equal(this->evidence(message), evidence);
}

}  // namespace securefabric::crypto
