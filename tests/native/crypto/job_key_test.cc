#include "crypto/job_key.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "crypto/test_bytes.h"

namespace securefabric::crypto {
namespace {

using base::ErrorCode;
using base::to_hex;

const std::string kKeyHex = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

std::string key_file(const std::string& id = "0123456789abcdef",
                     const std::string& suite = "aes-256-gcm", const std::string& key = kKeyHex) {
  return "securefabric-job-key v1\nid: " + id + "\nsuite: " + suite + "\nkey: " + key + "\n";
}

base::Result<JobKey> parse(const std::string& text) {
  ByteVector bytes = from_text(text);
  base::Result<JobKey> result = JobKey::parse(bytes);
  EXPECT_TRUE(std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; }));
  return result;
}

std::string message_of(const std::string& text) {
  const base::Result<JobKey> result = parse(text);
  if (result.ok()) return "parsed";
  EXPECT_EQ(result.error().code, ErrorCode::kConfig);
  EXPECT_EQ(result.error().message.find(kKeyHex.substr(0, 8)), std::string::npos);
  return result.error().message;
}

TEST(JobKey, parse__reads_and_wipes_the_text) {
  const JobKey key = parse(key_file()).value();
  EXPECT_EQ(key.key_id(), "0123456789abcdef");
  EXPECT_EQ(key.suite(), Suite::kAes256Gcm);
  EXPECT_EQ(key.job_secret().size(), 32u);
}

TEST(JobKey, parse__skips_comments_and_empty_lines) {
  const std::string text = "# held by job 7\n\n" + key_file() + "# the end";
  EXPECT_EQ(to_hex(parse(text).value().job_secret()),
            to_hex(parse(key_file()).value().job_secret()));
}

TEST(JobKey, parse__needs_no_newline_at_the_end) {
  const std::string text = key_file();
  EXPECT_TRUE(parse(text.substr(0, text.size() - 1)).ok());
}

TEST(JobKey, parse__names_the_fix_for_line_ends_of_windows) {
  std::string text = key_file();
  for (size_t at = 0; (at = text.find('\n', at)) != std::string::npos; at += 2) {
    text.replace(at, 1, "\r\n");
  }
  EXPECT_EQ(message_of(text),
            "its lines end as on Windows (CR LF); `sed -i 's/\\r$//' FILE` mends that");
}

TEST(JobKey, parse__names_length_and_fix_for_a_short_key) {
  const std::string message = message_of(key_file("0123456789abcdef", "aes-256-gcm", "00010203"));
  EXPECT_EQ(message,
            "line 4: key has 8 digits and needs exactly 64 (32 random bytes in "
            "hexadecimal); make a new one with `securefabric keygen FILE`");
}

TEST(JobKey, parse__names_line_and_field) {
  EXPECT_NE(message_of("").find("line 1: expected `securefabric-job-key v1`"), std::string::npos);
  EXPECT_NE(message_of("securefabric-job-key v2\n").find("line 1"), std::string::npos);
  EXPECT_NE(message_of(kKeyHex).find("line 1"), std::string::npos);
  EXPECT_NE(message_of("# a\n" + key_file("0123")).find("line 3: id has 4 digits"),
            std::string::npos);
  EXPECT_NE(message_of(key_file("0123456789abcdef", "aes-128-gcm"))
                .find("line 3: unknown cipher suite; the suites are aes-256-gcm aegis-256x2 "
                      "chacha20-poly1305"),
            std::string::npos);
  EXPECT_NE(message_of("securefabric-job-key v1\nid: 0123456789abcdef\nkey: " + kKeyHex + "\n")
                .find("line 3: expected `suite: ...`"),
            std::string::npos);
}

TEST(JobKey, parse__is_strict) {
  const std::string good = key_file();
  for (const std::string& text : {
           " " + good,                         // a space in front
           key_file("0123456789ABCDEF"),       // upper case
           key_file("0123456789abcdef "),      // a space behind
           key_file("0123456789abcdeg"),       // no digit
           good + "key: " + kKeyHex + "\n",    // a second key
           good + "note: hello\n",             // an unknown field
           good.substr(0, 60),                 // cut off
           key_file() + std::string(1, '\0'),  // something after the key
           key_file("0123456789abcdef", "aes-256-gcm", kKeyHex.substr(1) + "x"),
           "# " + std::string(JobKey::kTextBytesMax, 'x') + "\n" + good,  // too large
       }) {
    EXPECT_NE(message_of(text), "parsed") << text;
    EXPECT_NE(message_of(text).find("securefabric keygen FILE"), std::string::npos);
  }
}

TEST(JobKey, format__makes_a_file_that_parses) {
  for (const Suite suite : all_suites()) {
    ByteVector random = from_hex(kKeyHex);
    SecretBuffer text = JobKey::format(suite, random);
    EXPECT_EQ(random, ByteVector(32, 0));
    const std::string file = base::to_text(text.view());
    const JobKey key = JobKey::parse(text.bytes()).value();
    EXPECT_EQ(key.suite(), suite);
    EXPECT_EQ(file, key_file(key.key_id(), suite_name(suite)));
  }
}

TEST(JobKey, format__gives_every_key_its_own_id) {
  ByteVector one(32, 1);
  ByteVector two(32, 2);
  SecretBuffer first = JobKey::format(Suite::kAes256Gcm, one);
  SecretBuffer second = JobKey::format(Suite::kAes256Gcm, two);
  EXPECT_NE(JobKey::parse(first.bytes()).value().key_id(),
            JobKey::parse(second.bytes()).value().key_id());
}

TEST(JobKey, derivation__binds_key_id_and_suite) {
  const std::string id = "0123456789abcdef";
  const JobKey base = parse(key_file()).value();
  std::string other_hex = kKeyHex;
  other_hex.back() = '0';
  for (const std::string& text : {key_file("0123456789abcdee"), key_file(id, "chacha20-poly1305"),
                                  key_file(id, "aes-256-gcm", other_hex)}) {
    const JobKey other = parse(text).value();
    EXPECT_NE(to_hex(other.job_secret()), to_hex(base.job_secret()));
    for (const StoreRole role : {StoreRole::kServer, StoreRole::kClient}) {
      EXPECT_NE(to_hex(other.store_secret(role)), to_hex(base.store_secret(role)));
    }
    EXPECT_FALSE(other.verify_evidence(from_text("entry"), base.evidence(from_text("entry"))));
  }
}

// Computed from the comment of job_key.h with Python's hmac module.
TEST(JobKey, derivation__golden) {
  const JobKey key = parse(key_file()).value();
  EXPECT_EQ(to_hex(key.job_secret()),
            "e6fd882cb4f6feb9be7ad0639dde0b273dbffd47b690eb9e0a21f9a48aecdd50");
  EXPECT_EQ(to_hex(key.evidence(from_text("entry"))),
            "04e607fcabfcaf5856e10d415dfb72885b29c9788cc853f2cd2a54c69db70da6");
  EXPECT_EQ(to_hex(key.store_secret(StoreRole::kServer)),
            "a134d6cd54e5e1e380f6946cf96735945551391347ba2005ec81dfa2ce142ee7");
  EXPECT_EQ(to_hex(key.store_secret(StoreRole::kClient)),
            "b07c1ce25f321004f895cde343618d167efc58d0228afd1ae306b8688bd2494b");
}

TEST(JobKey, verify_evidence__refuses_changes) {
  const JobKey key = parse(key_file()).value();
  Hash evidence = key.evidence(from_text("entry"));
  EXPECT_TRUE(key.verify_evidence(from_text("entry"), evidence));
  EXPECT_FALSE(key.verify_evidence(from_text("entrz"), evidence));
  EXPECT_FALSE(key.verify_evidence(from_text("entry"), base::Bytes(evidence).first(31)));
  EXPECT_FALSE(key.verify_evidence(from_text("entry"), {}));
  evidence[0] ^= 1;
  EXPECT_FALSE(key.verify_evidence(from_text("entry"), evidence));
}

}  // namespace
}  // namespace securefabric::crypto
