#include "crypto/key_schedule.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "base/random.h"
#include "crypto/test_bytes.h"

namespace securefabric::crypto {
namespace {

using base::PathId;
using base::Rank;
using base::to_hex;

// RFC 7748 §6.1: alice is the lower rank.
KeyPair alice() {
  return KeyPair::from_private(
      to_secret(from_hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")));
}
KeyPair bob() {
  return KeyPair::from_private(
      to_secret(from_hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")));
}
const ByteVector kLowEntry = from_text("entry of rank 2");
const ByteVector kHighEntry = from_text("entry of rank 5");
const ByteVector kJobSecret(32, 7);

SecretBuffer link_of_alice() {
  return derive_link_secret(alice(), bob().public_key(), kLowEntry, kHighEntry, true, 0, kJobSecret)
      .value();
}

// All golden values of this file: computed from the comment of key_schedule.h in Python.
TEST(DeriveLinkSecret, golden__and_both_ends_agree) {
  EXPECT_EQ(to_hex(link_of_alice().view()),
            "516aea056c4675e37ee732d62f976319437f8d835e3fe23d352f9ed1e2004fe8");
  const SecretBuffer link_of_bob =
      derive_link_secret(bob(), alice().public_key(), kHighEntry, kLowEntry, false, 0, kJobSecret)
          .value();
  EXPECT_EQ(to_hex(link_of_bob.view()), to_hex(link_of_alice().view()));
}

TEST(DeriveLinkSecret, golden__with_a_kem_secret_behind_or_instead_of_the_job_secret) {
  const ByteVector kem_secret(32, 9);
  const auto derive = [&](const ByteVector& job_secret) {
    return to_hex(derive_link_secret(alice(), bob().public_key(), kLowEntry, kHighEntry, true, 0,
                                     job_secret, kem_secret)
                      .value()
                      .view());
  };
  EXPECT_EQ(derive(kJobSecret), "90bd45c181ee27db3285fff4df7b2c6bd8761abf9a150df4d5b980eef3f5fc69");
  EXPECT_EQ(derive({}), "69bd30a0dd486113c888052b95d73250e4039e6cf03b58a1a878d0051814e4dc");
}

TEST(DeriveLinkSecret, inputs__each_change_the_secret) {
  const auto derive = [](const ByteVector& own, const ByteVector& peer, bool low,
                         const ByteVector& job, uint32_t engine = 0) {
    return to_hex(derive_link_secret(alice(), bob().public_key(), own, peer, low, engine, job)
                      .value()
                      .view());
  };
  const std::set<std::string> secrets = {
      derive(kLowEntry, kHighEntry, true, kJobSecret),
      derive(kLowEntry, kHighEntry, false, kJobSecret),
      derive(kLowEntry, from_text("entry of rank 6"), true, kJobSecret),
      derive(from_text("entry of rank 2e"), from_text("ntry of rank 5"), true, kJobSecret),
      derive(kLowEntry, kHighEntry, true, ByteVector(32, 8)),
      derive(kLowEntry, kHighEntry, true, {}),
      derive(kLowEntry, kHighEntry, true, kJobSecret, 1),
  };
  EXPECT_EQ(secrets.size(), 7u);
}

TEST(DeriveLinkSecret, peer__of_low_order_or_mirrored_is_refused) {
  EXPECT_FALSE(
      derive_link_secret(alice(), ByteVector(32, 0), kLowEntry, kHighEntry, true, 0, kJobSecret)
          .ok());
  EXPECT_FALSE(
      derive_link_secret(alice(), alice().public_key(), kLowEntry, kHighEntry, true, 0, kJobSecret)
          .ok());
}

TEST(DeriveEpochLinkSecret, golden__and_both_ends_agree) {
  const SecretBuffer link = link_of_alice();
  const SecretBuffer low =
      derive_epoch_link_secret(link.view(), alice(), bob().public_key(), true, 1).value();
  const SecretBuffer high =
      derive_epoch_link_secret(link.view(), bob(), alice().public_key(), false, 1).value();
  EXPECT_EQ(to_hex(low.view()), "8b9cc3b669955cc7792b1eaefc541bc021c66415ad32156ade8b668b9c5fdaeb");
  EXPECT_EQ(to_hex(high.view()), to_hex(low.view()));
  const SecretBuffer later =
      derive_epoch_link_secret(link.view(), alice(), bob().public_key(), true, 2).value();
  EXPECT_NE(to_hex(later.view()), to_hex(low.view()));
  EXPECT_FALSE(derive_epoch_link_secret(link.view(), alice(), ByteVector(32, 0), true, 1).ok());
}

TEST(DeriveDirectionSecret, golden__and_every_input_counts) {
  const SecretBuffer link = link_of_alice();
  const auto derive = [&link](uint32_t from, uint32_t to, uint32_t epoch) {
    return to_hex(derive_direction_secret(link.view(), Rank{from}, Rank{to}, epoch).view());
  };
  EXPECT_EQ(derive(2, 5, 0), "0a839f96d9f04635af3d24bfd0b965992d40aaae9f58230d31d746b0bc6e063d");
  const std::set<std::string> secrets = {derive(2, 5, 0), derive(5, 2, 0), derive(2, 5, 1),
                                         derive(2, 6, 0), derive(3, 5, 0)};
  EXPECT_EQ(secrets.size(), 5u);
}

TEST(DerivePacketKey, golden__down_to_key_and_iv) {
  const SecretBuffer direction =
      derive_direction_secret(link_of_alice().view(), Rank{2}, Rank{5}, 0);
  const SecretBuffer path = derive_path_secret(direction.view(), PathId::from_sockets(1, 3));
  EXPECT_EQ(to_hex(path.view()),
            "040624594079c91cf53c5d825edc05af864703aa35c62b267db2c89195cff60b");
  const PacketKey packet_key = derive_packet_key(path.view(), 0x0102030405, 32, 12);
  EXPECT_EQ(to_hex(packet_key.key.view()),
            "2a130d9b12aa717228126ee7e293ed5509f799e9e09ee275cc200ab1604488ad");
  EXPECT_EQ(to_hex(packet_key.iv.view()), "c43c28c8d7a9eb8abd803d25");
}

TEST(DerivePathSecret, paths__and_generations_never_share_a_key) {
  std::set<std::string> keys;
  for (uint16_t id = 0; id < 16; ++id) {
    const SecretBuffer path = derive_path_secret(kJobSecret, PathId{id});
    for (uint64_t generation = 0; generation < 4; ++generation) {
      const PacketKey packet_key = derive_packet_key(path.view(), generation, 32, 32);
      keys.insert(to_hex(packet_key.key.view()));
      keys.insert(to_hex(packet_key.iv.view()));
    }
  }
  EXPECT_EQ(keys.size(), 16u * 4u * 2u);
}

}  // namespace
}  // namespace securefabric::crypto
