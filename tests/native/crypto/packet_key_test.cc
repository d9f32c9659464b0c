#include "crypto/packet_key.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <type_traits>

#include "base/random.h"
#include "crypto/key_schedule.h"
#include "crypto/test_bytes.h"

namespace securefabric::crypto {
namespace {

using base::Bytes;
using base::PacketNumber;
using base::PathId;
using base::Random;
using base::to_hex;

static_assert(!std::is_copy_constructible_v<PathSealer>);
static_assert(std::is_move_constructible_v<PathSealer>);
static_assert(!std::is_copy_constructible_v<PathOpener>);
static_assert(std::is_move_constructible_v<PathOpener>);

constexpr PathId kPath = PathId::from_sockets(1, 2);
const ByteVector kHeader = from_text("sixteen byte hdr");

// The suite that runs on every CPU: this file is about counters and keys, not about ciphers.
const AeadProvider& provider() {
  return *find_provider(Suite::kChaCha20Poly1305).value();
}

SecretBuffer path_secret() {
  return to_secret(ByteVector(32, 0x11));
}

PathSealer make_sealer(unsigned generation_bits) {
  return PathSealer(provider(), path_secret(), kPath, generation_bits);
}
PathOpener make_opener(unsigned generation_bits) {
  return PathOpener(provider(), path_secret(), kPath, generation_bits);
}

struct Packet {
  EpochBit epoch = 0;       // as in the header
  PacketNumber number = 0;  // as in the header
  ByteVector data;          // plaintext
  ByteVector sealed;        // ciphertext and tag
};

Packet seal_next(PathSealer& sealer) {
  Packet packet;
  packet.number = sealer.next_packet_number();
  packet.data = from_text("packet " + std::to_string(packet.number));
  packet.sealed.resize(packet.data.size() + kAuthTagBytes);
  const Bytes parts[] = {Bytes(packet.data).first(3), Bytes(packet.data).subspan(3)};
  EXPECT_TRUE(sealer.seal(kHeader, parts, packet.sealed));
  return packet;
}

std::vector<Packet> seal_many(PathSealer& sealer, size_t count) {
  std::vector<Packet> packets;
  while (packets.size() < count) packets.push_back(seal_next(sealer));
  return packets;
}

OpenStatus open(PathOpener& opener, const Packet& packet) {
  ByteVector out(packet.data.size());
  const OpenStatus status = opener.open(packet.epoch, packet.number, kHeader, packet.sealed, out);
  if (status == OpenStatus::kOk) {
    EXPECT_EQ(out, packet.data);
  }
  return status;
}

Packet forged(Packet packet) {
  packet.sealed.back() ^= 1;
  return packet;
}

TEST(MakeNonce, layout__is_that_of_multipath_quic) {
  ByteVector nonce(12);
  make_nonce(ByteVector(12, 0), PathId{0x0102}, 0x1122334455667788, nonce);
  EXPECT_EQ(to_hex(nonce), "000001021122334455667788");
  make_nonce(ByteVector(12, 0xFF), PathId{0x0102}, 0x1122334455667788, nonce);
  EXPECT_EQ(to_hex(nonce), "fffffefdeeddccbbaa998877");
  ByteVector wide(32);
  make_nonce(ByteVector(32, 0), PathId{0xFFFF}, 1, wide);
  EXPECT_EQ(to_hex(wide), std::string(40, '0') + "0000ffff0000000000000001");
}

TEST(PathSealer, seal__uses_the_documented_key_and_nonce) {
  PathSealer sealer = make_sealer(2);
  std::vector<Packet> packets = seal_many(sealer, 10);
  // Packet 9 is the second of generation 2.
  const PacketKey packet_key = derive_packet_key(path_secret().view(), 2, 32, 12);
  ByteVector nonce(12);
  make_nonce(packet_key.iv.view(), kPath, 9, nonce);
  const Bytes part = packets[9].data;
  ByteVector expected(packets[9].sealed.size());
  provider().make_key(packet_key.key.view())->seal(nonce, kHeader, std::span(&part, 1), expected);
  EXPECT_EQ(to_hex(packets[9].sealed), to_hex(expected));
}

TEST(PathSealer, seal__burns_a_number_each_time) {
  PathSealer sealer = make_sealer(22);
  EXPECT_EQ(sealer.next_packet_number(), 0u);
  const ByteVector data(20, 0x42);
  const Bytes part = data;
  std::set<std::string> outputs;
  for (PacketNumber n = 1; n <= 100; ++n) {
    ByteVector sealed(36);
    ASSERT_TRUE(sealer.seal(kHeader, std::span(&part, 1), sealed));
    EXPECT_EQ(sealer.next_packet_number(), n);
    outputs.insert(to_hex(Bytes(sealed).first(20)));
  }
  EXPECT_EQ(outputs.size(), 100u);
}

TEST(PathSealer, seal__stops_at_its_limit_for_ever) {
  PathSealer sealer(provider(), path_secret(), kPath, 2, 6);
  seal_many(sealer, 6);
  const ByteVector data(4, 0x42);
  const Bytes part = data;
  for (int i = 0; i < 3; ++i) {
    ByteVector out(20, 0xEE);
    EXPECT_FALSE(sealer.seal(kHeader, std::span(&part, 1), out));
    EXPECT_EQ(out, ByteVector(20, 0xEE));
    EXPECT_EQ(sealer.next_packet_number(), 6u);
  }
}

TEST(PathSealer, constructor__checks_its_limits) {
  EXPECT_DEATH(make_sealer(0), "broken invariant");
  EXPECT_DEATH(make_sealer(provider().generation_bits_max() + 1), "broken invariant");
  EXPECT_DEATH(make_opener(0), "broken invariant");
  EXPECT_DEATH(PathSealer(provider(), path_secret(), kPath, 2, kPacketNumberEnd + 1),
               "broken invariant");
}

TEST(PathSealer, move__takes_the_counter_along) {
  PathSealer first = make_sealer(2);
  seal_many(first, 7);
  PathSealer second = std::move(first);
  PathOpener opener = make_opener(3);
  const Packet packet = seal_next(second);
  EXPECT_EQ(packet.number, 7u);
}

TEST(PathOpener, open__takes_packets_in_any_order_once) {
  PathSealer sealer = make_sealer(22);
  PathOpener opener = make_opener(22);
  std::vector<Packet> packets = seal_many(sealer, 50);
  std::reverse(packets.begin(), packets.end());
  for (const Packet& packet : packets) EXPECT_EQ(open(opener, packet), OpenStatus::kOk);
  for (const Packet& packet : packets) {
    EXPECT_EQ(open(opener, packet), OpenStatus::kReplayDuplicate);
  }
  EXPECT_EQ(opener.window().largest(), 49u);
  EXPECT_EQ(opener.auth_failures(), 0u);
}

TEST(PathOpener, open__of_an_empty_packet) {
  PathSealer sealer = make_sealer(22);
  PathOpener opener = make_opener(22);
  ByteVector sealed(kAuthTagBytes);
  ASSERT_TRUE(sealer.seal(kHeader, {}, sealed));
  EXPECT_EQ(opener.open(0, 0, kHeader, sealed, {}), OpenStatus::kOk);
}

TEST(PathOpener, open__follows_the_generations) {
  PathSealer sealer = make_sealer(2);
  PathOpener opener = make_opener(2);
  for (int i = 0; i < 100; ++i) ASSERT_EQ(open(opener, seal_next(sealer)), OpenStatus::kOk) << i;
}

TEST(PathOpener, open__accepts_previous_current_and_next_generation) {
  constexpr unsigned kBits = 14;  // longer than the replay window
  constexpr size_t kLength = size_t{1} << kBits;
  PathSealer sealer = make_sealer(kBits);
  PathOpener opener = make_opener(kBits);
  const std::vector<Packet> packets = seal_many(sealer, 4 * kLength + 1);
  EXPECT_EQ(open(opener, packets[2 * kLength]), OpenStatus::kFutureGeneration);  // we are at 0
  EXPECT_EQ(open(opener, packets[kLength + 2]), OpenStatus::kOk);                // next: adopted
  EXPECT_EQ(open(opener, packets[kLength - 1]), OpenStatus::kOk);                // previous
  EXPECT_EQ(open(opener, packets[2 * kLength]), OpenStatus::kOk);                // next again
  EXPECT_EQ(open(opener, packets[kLength - 2]), OpenStatus::kStaleGeneration);   // two back
  EXPECT_EQ(open(opener, packets[2 * kLength - 1]), OpenStatus::kOk);            // previous
  EXPECT_EQ(open(opener, packets[4 * kLength]), OpenStatus::kFutureGeneration);
  EXPECT_EQ(opener.window().largest(), 2 * kLength);
}

// Generations are short in tests only; a burst of losses must not end a path there either.
TEST(PathOpener, open__skips_generations_that_were_lost_as_a_whole) {
  PathSealer sealer = make_sealer(2);
  PathOpener opener = make_opener(2);
  std::vector<Packet> packets = seal_many(sealer, ReplayWindow::kWindow + 40);
  EXPECT_EQ(open(opener, packets[1]), OpenStatus::kOk);
  EXPECT_EQ(open(opener, packets[ReplayWindow::kWindow + 1]), OpenStatus::kFutureGeneration);
  EXPECT_EQ(open(opener, packets[ReplayWindow::kWindow]), OpenStatus::kOk);
  EXPECT_EQ(open(opener, packets[ReplayWindow::kWindow - 1]), OpenStatus::kOk);  // previous
  EXPECT_EQ(open(opener, packets[ReplayWindow::kWindow - 5]), OpenStatus::kStaleGeneration);
}

// --- Epochs ---

SecretBuffer later_secret() {
  return to_secret(ByteVector(32, 0x22));
}

Packet seal_later(PathSealer& sealer) {
  Packet packet = seal_next(sealer);
  packet.epoch = 1;
  return packet;
}

TEST(PathSealer, begin_epoch__goes_on_counting_under_other_keys) {
  PathSealer sealer = make_sealer(2);
  seal_many(sealer, 9);
  sealer.begin_epoch(later_secret());
  const Packet packet = seal_later(sealer);
  EXPECT_EQ(packet.number, 9u);
  const PacketKey packet_key = derive_packet_key(later_secret().view(), 2, 32, 12);
  ByteVector nonce(12);
  make_nonce(packet_key.iv.view(), kPath, 9, nonce);
  const Bytes part = packet.data;
  ByteVector expected(packet.sealed.size());
  provider().make_key(packet_key.key.view())->seal(nonce, kHeader, std::span(&part, 1), expected);
  EXPECT_EQ(to_hex(packet.sealed), to_hex(expected));
}

TEST(PathSealer, wipe__seals_no_more) {
  PathSealer sealer = make_sealer(2);
  seal_many(sealer, 9);
  for (int i = 0; i < 2; ++i) {
    sealer.wipe();
    ByteVector out(16);
    EXPECT_FALSE(sealer.seal(kHeader, {}, out));
    EXPECT_EQ(sealer.next_packet_number(), 9u);
    sealer.begin_epoch(later_secret());  // not even under other keys
    EXPECT_FALSE(sealer.seal(kHeader, {}, out));
  }
}

TEST(PathOpener, install_epoch__opens_both_in_any_order) {
  PathSealer sealer = make_sealer(22);
  PathOpener opener = make_opener(22);
  const std::vector<Packet> before = seal_many(sealer, 3);
  sealer.begin_epoch(later_secret());
  const Packet after = seal_later(sealer);
  EXPECT_EQ(open(opener, after), OpenStatus::kUnknownEpoch);
  opener.install_epoch(1, later_secret());
  EXPECT_EQ(open(opener, before[0]), OpenStatus::kOk);
  EXPECT_EQ(open(opener, after), OpenStatus::kOk);
  EXPECT_EQ(open(opener, before[2]), OpenStatus::kOk);
  EXPECT_EQ(open(opener, after), OpenStatus::kReplayDuplicate);
}

TEST(PathOpener, retire_epoch__opens_nothing_of_it_any_more) {
  PathSealer sealer = make_sealer(22);
  PathOpener opener = make_opener(22);
  const std::vector<Packet> before = seal_many(sealer, 3);
  EXPECT_EQ(open(opener, before[0]), OpenStatus::kOk);
  opener.install_epoch(1, later_secret());
  opener.retire_epoch(0);
  EXPECT_EQ(open(opener, before[1]), OpenStatus::kUnknownEpoch);
  sealer.begin_epoch(later_secret());
  EXPECT_EQ(open(opener, seal_later(sealer)), OpenStatus::kOk);
}

TEST(PathOpener, open__a_number_counts_once_whatever_its_epoch) {
  PathOpener opener = make_opener(22);
  opener.install_epoch(1, later_secret());
  PathSealer first = make_sealer(22);
  PathSealer second(provider(), later_secret(), kPath, 22);
  EXPECT_EQ(open(opener, seal_next(first)), OpenStatus::kOk);
  EXPECT_EQ(open(opener, seal_later(second)), OpenStatus::kReplayDuplicate);
  // Nor does a packet open under the other epoch's keys.
  Packet mixed = seal_next(first);
  mixed.epoch = 1;
  EXPECT_EQ(open(opener, mixed), OpenStatus::kAuthFailed);
}

TEST(PathOpener, open__an_epoch_that_begins_many_generations_in) {
  PathSealer sealer = make_sealer(2);
  PathOpener opener = make_opener(2);
  for (const Packet& packet : seal_many(sealer, 4'000)) {
    ASSERT_EQ(open(opener, packet), OpenStatus::kOk);
  }
  sealer.begin_epoch(later_secret());
  opener.install_epoch(1, later_secret());
  seal_many(sealer, 40);  // lost
  EXPECT_EQ(open(opener, seal_later(sealer)), OpenStatus::kOk);
}

TEST(PathOpener, open__previous_generation_whose_packets_were_all_late) {
  PathSealer sealer = make_sealer(2);
  PathOpener opener = make_opener(2);
  const std::vector<Packet> packets = seal_many(sealer, 8);
  EXPECT_EQ(open(opener, packets[4]), OpenStatus::kOk);  // generation 0 was never seen
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(open(opener, packets[i]), OpenStatus::kOk) << i;
}

TEST(PathOpener, open__refuses_numbers_past_the_limit) {
  PathOpener opener = make_opener(22);
  ByteVector out(4, 0xEE);
  for (const PacketNumber number : {kPacketNumberEnd, ~PacketNumber{0}}) {
    EXPECT_EQ(opener.open(0, number, kHeader, ByteVector(20), out), OpenStatus::kLimit);
  }
  EXPECT_EQ(opener.open(0, kPacketNumberEnd - 1, kHeader, ByteVector(20), out),
            OpenStatus::kFutureGeneration);
  EXPECT_EQ(opener.open(0, PacketNumber{1} << 40, kHeader, ByteVector(20), out),
            OpenStatus::kFutureGeneration);
  EXPECT_EQ(out, ByteVector(4, 0xEE));
  EXPECT_TRUE(opener.window().empty());
  EXPECT_EQ(opener.auth_failures(), 0u);
}

TEST(PathOpener, open__refuses_what_fell_out_of_the_window) {
  PathSealer sealer = make_sealer(22);
  PathOpener opener = make_opener(22);
  const std::vector<Packet> packets = seal_many(sealer, ReplayWindow::kWindow + 2);
  EXPECT_EQ(open(opener, packets.back()), OpenStatus::kOk);
  EXPECT_EQ(open(opener, packets[1]), OpenStatus::kReplayTooOld);
  EXPECT_EQ(open(opener, packets[2]), OpenStatus::kOk);
}

TEST(PathOpener, open__counts_and_wipes_forgeries) {
  PathSealer sealer = make_sealer(22);
  PathOpener opener = make_opener(22);
  const Packet packet = seal_next(sealer);
  ByteVector out(packet.data.size(), 0xEE);
  EXPECT_EQ(opener.open(0, 0, kHeader, forged(packet).sealed, out), OpenStatus::kAuthFailed);
  EXPECT_EQ(out, ByteVector(packet.data.size(), 0));
  for (size_t size = 0; size < kAuthTagBytes; ++size) {
    EXPECT_EQ(opener.open(0, 0, kHeader, ByteVector(size), {}), OpenStatus::kAuthFailed);
  }
  EXPECT_EQ(opener.auth_failures(), 1 + kAuthTagBytes);
  EXPECT_EQ(open(opener, packet), OpenStatus::kOk);
}

TEST(PathOpener, open__refuses_a_packet_under_another_identity) {
  PathSealer sealer = make_sealer(22);
  const std::vector<Packet> packets = seal_many(sealer, 2);
  PathOpener opener = make_opener(22);
  Packet renumbered = packets[0];
  renumbered.number = 1;
  EXPECT_EQ(open(opener, renumbered), OpenStatus::kAuthFailed);
  ByteVector out(packets[0].data.size());
  EXPECT_EQ(opener.open(0, 0, from_text("another header.."), packets[0].sealed, out),
            OpenStatus::kAuthFailed);
  // A wrong path id alone breaks the nonce, even under the same secret.
  PathOpener other_path(provider(), path_secret(), PathId::from_sockets(2, 1), 22);
  EXPECT_EQ(open(other_path, packets[0]), OpenStatus::kAuthFailed);
  PathOpener other_secret(provider(), to_secret(ByteVector(32, 0x22)), kPath, 22);
  EXPECT_EQ(open(other_secret, packets[0]), OpenStatus::kAuthFailed);
}

// A forgery that claims the next generation or a high number must leave no trace but the counter.
TEST(PathOpener, open__moves_nothing_before_the_tag_verified) {
  PathSealer sealer = make_sealer(2);
  const std::vector<Packet> packets = seal_many(sealer, 16);
  PathOpener attacked = make_opener(2);
  PathOpener quiet = make_opener(2);
  for (const size_t at : {0u, 1u, 6u, 3u, 5u, 9u, 4u, 11u, 13u, 8u, 15u}) {
    for (const Packet& packet : packets) {
      const OpenStatus status = open(attacked, forged(packet));
      EXPECT_NE(status, OpenStatus::kOk);
      // What a forgery gets told is what any packet of that number would: checks come first.
      const bool claims_known_key = status == OpenStatus::kAuthFailed;
      const bool is_new = quiet.window().check(packet.number) == Seen::kNew;
      EXPECT_TRUE(is_new || !claims_known_key);
    }
    EXPECT_EQ(attacked.window().largest(), quiet.window().largest());
    EXPECT_EQ(open(attacked, packets[at]), OpenStatus::kOk) << at;
    EXPECT_EQ(open(quiet, packets[at]), OpenStatus::kOk) << at;
  }
  EXPECT_GT(attacked.auth_failures(), 0u);
  EXPECT_EQ(quiet.auth_failures(), 0u);
  for (PacketNumber n = 0; n < 20; ++n) {
    EXPECT_EQ(attacked.window().check(n), quiet.window().check(n)) << n;
  }
}

// Loss, reordering, duplication and forgery across many small generations, against a plain model.
TEST(PathOpener, property__agrees_with_a_model) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const auto bits = static_cast<unsigned>(1 + random.below(5));
    PathSealer sealer = make_sealer(bits);
    PathOpener opener = make_opener(bits);
    std::vector<Packet> network;
    std::set<PacketNumber> opened;
    uint64_t newest = 0;
    for (int step = 0; step < 1'000; ++step) {
      network.push_back(seal_next(sealer));
      if (random.chance(0.3)) continue;  // stays for later, or for ever
      const size_t back = random.below(std::min<uint64_t>(network.size(), uint64_t{2} << bits));
      const Packet& packet = network[network.size() - 1 - back];
      const uint64_t generation = packet.number >> bits;
      OpenStatus expected = OpenStatus::kOk;
      const PacketNumber largest = opened.empty() ? 0 : *opened.rbegin();
      if (generation > newest + 1 && packet.number >= largest + ReplayWindow::kWindow)
        expected = OpenStatus::kFutureGeneration;
      else if (generation + 1 < newest)
        expected = OpenStatus::kStaleGeneration;
      else if (opened.contains(packet.number))
        expected = OpenStatus::kReplayDuplicate;
      if (random.chance(0.2)) {
        if (expected == OpenStatus::kOk) expected = OpenStatus::kAuthFailed;
        ASSERT_EQ(open(opener, forged(packet)), expected) << packet.number;
        continue;
      }
      ASSERT_EQ(open(opener, packet), expected) << packet.number;
      if (expected == OpenStatus::kOk) {
        opened.insert(packet.number);
        newest = std::max(newest, generation);
      }
    }
    EXPECT_FALSE(opened.empty());
  }
}

// With the usual memlock limit of 8 MiB, 1,600 peers on 4 paths fit, each way, in one generation.
TEST(PathSealer, secret_memory__of_a_path_is_640_bytes_at_most) {
  const auto kib_held = [] { return std::stoul(secret_memory_status()); };
  for (const Suite suite : {Suite::kAes256Gcm, Suite::kAegis256x2, Suite::kChaCha20Poly1305}) {
    const auto found = find_provider(suite);
    if (!found.ok()) continue;
    constexpr size_t kPaths = 1'000;
    std::vector<PathSealer> sealers;
    make_sealer(22);
    const size_t before = kib_held();
    for (size_t i = 0; i < kPaths; ++i) {
      sealers.emplace_back(*found.value(), path_secret(), kPath, 22);
      ByteVector sealed(kAuthTagBytes);
      ASSERT_TRUE(sealers.back().seal(kHeader, {}, sealed));
    }
    // Blocks of 64 KiB, of which the last of each size may be nearly empty.
    EXPECT_LE(kib_held() - before, kPaths * 640 / 1024 + 3 * 64) << suite_name(suite);
  }
}

TEST(OpenStatus, names__are_distinct) {
  std::set<std::string> names;
  for (const OpenStatus status :
       {OpenStatus::kOk, OpenStatus::kUnknownEpoch, OpenStatus::kStaleGeneration,
        OpenStatus::kFutureGeneration, OpenStatus::kReplayDuplicate, OpenStatus::kReplayTooOld,
        OpenStatus::kAuthFailed, OpenStatus::kLimit}) {
    names.insert(open_status_name(status));
  }
  EXPECT_EQ(names.size(), 8u);
}

}  // namespace
}  // namespace securefabric::crypto
