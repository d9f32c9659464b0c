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
  return derive_link_secret(alice(), bob().public_key(), kLowEntry, kHighEntry, true, kJobSecret)
      .value();
}

// All golden values of this file: computed from the comment of key_schedule.h in Python.
TEST(DeriveLinkSecret, golden__and_both_ends_agree) {
  EXPECT_EQ(to_hex(link_of_alice().view()),
            "c85973a0cc5d01364dcee88163cf0ca32795d3b2411696313f94fb0f2900abbc");
  const SecretBuffer link_of_bob =
      derive_link_secret(bob(), alice().public_key(), kHighEntry, kLowEntry, false, kJobSecret)
          .value();
  EXPECT_EQ(to_hex(link_of_bob.view()), to_hex(link_of_alice().view()));
}

TEST(DeriveLinkSecret, golden__with_a_kem_secret_behind_or_instead_of_the_job_secret) {
  const ByteVector kem_secret(32, 9);
  const auto derive = [&](const ByteVector& job_secret) {
    return to_hex(derive_link_secret(alice(), bob().public_key(), kLowEntry, kHighEntry, true,
                                     job_secret, kem_secret)
                      .value()
                      .view());
  };
  EXPECT_EQ(derive(kJobSecret), "4b51f4a415639427aaafda36f633377441ff5acfb52add0b29837c17005d6dad");
  EXPECT_EQ(derive({}), "e1fb7bbb7168f7b5910a105a1dd53107a875e0cfce018de8b496352e2bdefcd0");
}

TEST(DeriveLinkSecret, inputs__each_change_the_secret) {
  const auto derive = [](const ByteVector& own, const ByteVector& peer, bool low,
                         const ByteVector& job) {
    return to_hex(
        derive_link_secret(alice(), bob().public_key(), own, peer, low, job).value().view());
  };
  const std::set<std::string> secrets = {
      derive(kLowEntry, kHighEntry, true, kJobSecret),
      derive(kLowEntry, kHighEntry, false, kJobSecret),
      derive(kLowEntry, from_text("entry of rank 6"), true, kJobSecret),
      derive(from_text("entry of rank 2e"), from_text("ntry of rank 5"), true, kJobSecret),
      derive(kLowEntry, kHighEntry, true, ByteVector(32, 8)),
      derive(kLowEntry, kHighEntry, true, {}),
  };
  EXPECT_EQ(secrets.size(), 6u);
}

TEST(DeriveLinkSecret, peer__of_low_order_or_mirrored_is_refused) {
  EXPECT_FALSE(
      derive_link_secret(alice(), ByteVector(32, 0), kLowEntry, kHighEntry, true, kJobSecret).ok());
  EXPECT_FALSE(
      derive_link_secret(alice(), alice().public_key(), kLowEntry, kHighEntry, true, kJobSecret)
          .ok());
}

TEST(DeriveEpochLinkSecret, golden__and_both_ends_agree) {
  const SecretBuffer link = link_of_alice();
  const SecretBuffer low =
      derive_epoch_link_secret(link.view(), alice(), bob().public_key(), true, 1).value();
  const SecretBuffer high =
      derive_epoch_link_secret(link.view(), bob(), alice().public_key(), false, 1).value();
  EXPECT_EQ(to_hex(low.view()), "aa46c8981c3fa0c5182afc4d1aa282319fa9a9150bb67ab3eb9bf7bbb5c93d03");
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
  EXPECT_EQ(derive(2, 5, 0), "9c577b5f6a48a2b9d91bb4fa2bf7ddefced259610b793763f5c79ec03d09def8");
  const std::set<std::string> secrets = {derive(2, 5, 0), derive(5, 2, 0), derive(2, 5, 1),
                                         derive(2, 6, 0), derive(3, 5, 0)};
  EXPECT_EQ(secrets.size(), 5u);
}

TEST(DerivePacketKey, golden__down_to_key_and_iv) {
  const SecretBuffer direction =
      derive_direction_secret(link_of_alice().view(), Rank{2}, Rank{5}, 0);
  const SecretBuffer path = derive_path_secret(direction.view(), PathId::from_sockets(1, 3));
  EXPECT_EQ(to_hex(path.view()),
            "9b21aebb5e6ce85a3ab0c3a91aaf599361d54039f86a4f52929584d3482d996a");
  const PacketKey packet_key = derive_packet_key(path.view(), 0x0102030405, 32, 12);
  EXPECT_EQ(to_hex(packet_key.key.view()),
            "2431bdd5e569eed716f7ae86fc379d129df9870bbb700f855de7e50fed647a1f");
  EXPECT_EQ(to_hex(packet_key.iv.view()), "47356ac6fc833e069ba1db15");
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
