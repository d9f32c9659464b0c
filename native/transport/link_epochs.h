// The epochs of one link: when its secret is replaced by a fresh one, and how both ends get there.
//
// PROTOCOL.md §4. In band and encrypted, without a pause in the data:
//
//   begin ──► our EPOCH frame, until acknowledged ──────────────────────────┐
//   the peer's EPOCH frame ──► secrets of the next epoch, receive keys in ──┴──► send in it
//   first packet opened in it ──► a while later the old receive keys are wiped
//
// Both ends may begin at once: the exchange is symmetric. An end moves its sending when it has the
// peer's frame and knows that the peer has its own, for then the peer's receive keys are in place:
// the peer has acknowledged it, or sends in the new epoch already. At most two epochs live at a
// time, so one bit of the header tells them apart. A peer that has not followed within a bound is
// overdue: keys do not outlive their limits because somebody is silent.
//
// What is needed no more is wiped at once: a private key when the secret is made, the link's secret
// when the next one is, send keys when sending moves, receive keys `linger` after the peer moved.
//
// Sans-IO; private keys are handed in. The owner installs and retires the keys of its paths.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "base/ids.h"
#include "base/result.h"
#include "base/time.h"
#include "crypto/key_exchange.h"
#include "crypto/packet_key.h"
#include "crypto/secret.h"
#include "wire/frames.h"

namespace securefabric::transport {

// What makes a link begin its next epoch; whichever comes first.
struct EpochLimits {
  base::Duration age = base::Duration::seconds(3600);
  uint64_t bytes = uint64_t{1} << 40;      // sealed and opened together
  uint64_t forgeries = uint64_t{1} << 35;  // packets that did not verify
};

class LinkEpochs {
 public:
  // 32 random bytes of secret memory, drawn by the driver.
  using DrawPrivateKey = std::function<crypto::SecretBuffer()>;

  LinkEpochs(base::Rank own, base::Rank peer, const EpochLimits& limits);
  // The secret that both ends derive from their entries begins epoch 0.
  void install(crypto::SecretBuffer link_secret, base::Instant now);

  uint32_t sending_epoch() const { return sending_epoch_; }
  crypto::EpochBit sending_bit() const { return sending_epoch_ & 1; }
  crypto::EpochBit newest_bit() const { return newest_epoch_ & 1; }
  // Direction secrets: what a path of that epoch derives its own from.
  base::Bytes send_secret() const { return send_secret_.view(); }
  base::Bytes receive_secret() const { return receive_secret_.view(); }  // of the newest epoch
  // Of the epoch before, while packets of it may still arrive; otherwise empty.
  base::Bytes old_receive_secret() const { return old_receive_secret_.view(); }

  // --- When ---

  void on_traffic(uint64_t bytes) { bytes_ += bytes; }
  void on_forgery() { ++forgeries_; }
  uint64_t forgeries() const { return forgeries_; }  // in this epoch
  // Time to call begin().
  bool is_due(base::Instant now) const;
  // A change began `patience` ago, and the peer still does not send in the new epoch.
  bool is_overdue(base::Instant now, base::Duration patience) const;
  // When one of is_due(), is_overdue() and may_retire() turns true by time alone.
  base::Instant deadline(base::Duration linger, base::Duration patience) const;

  // --- The exchange ---

  // What an input asks of the owner, in this order.
  struct Effects {
    bool must_send_half = false;  // half() goes out, until it is acknowledged
    bool installs = false;        // receive keys of newest_bit() are to be installed on every path
    bool moves = false;           // every path seals with keys of the new send_secret() from here
  };

  // Draws our half of the next epoch. Requires is_due().
  Effects begin(const DrawPrivateKey& draw, base::Instant now);
  // Our half, while it is not acknowledged.
  const std::optional<wire::EpochFrame>& half() const { return half_; }
  // The peer's half, from a packet of epoch `sealed_in`. kAuth when its key must be refused,
  // kPeerLost when it is of any epoch but the next or was not sealed in the one before that.
  base::Result<Effects> handle(const wire::EpochFrame& frame, crypto::EpochBit sealed_in,
                               const DrawPrivateKey& draw, base::Instant now);
  // A packet that held our half of `epoch` has arrived.
  Effects on_acknowledged(uint32_t epoch);
  // A packet of this epoch verified.
  Effects on_opened(crypto::EpochBit epoch, base::Instant now);

  // The old receive keys have been kept for `linger` since the first packet of the newest epoch.
  bool may_retire(base::Instant now, base::Duration linger) const;
  // Wipes what is left of the old epoch; the caller retires the bit that is not newest_bit().
  void retire();
  // Wipes everything: the link has ended.
  void wipe();

 private:
  bool is_moved() const { return sending_epoch_ == newest_epoch_; }
  void draw_half(const DrawPrivateKey& draw, base::Instant now);
  Effects move_if_ready(Effects effects);
  void start_counting(base::Instant now);
  bool is_too_often(base::Instant now);

  base::Rank own_;
  base::Rank peer_;
  EpochLimits limits_;

  crypto::SecretBuffer link_;                // of the newest epoch; empty before install()
  uint32_t newest_epoch_ = 0;                // receive keys of it are in place
  uint32_t sending_epoch_ = 0;               // the newest or the one before
  crypto::SecretBuffer send_secret_;         // of sending_epoch_
  crypto::SecretBuffer next_send_secret_;    // of newest_epoch_ until sending moves, then empty
  crypto::SecretBuffer receive_secret_;      // of newest_epoch_
  crypto::SecretBuffer old_receive_secret_;  // see old_receive_secret()
  // When a packet of the newest epoch first verified; never before that and in epoch 0.
  base::Instant newest_opened_at_ = base::Instant::never();

  std::optional<crypto::KeyPair> key_pair_;  // of our half, until the peer's has come
  std::optional<wire::EpochFrame> half_;     // see half()
  uint32_t acknowledged_epoch_ = 0;          // newest one of which the peer has our half

  // When our half of the change under way was drawn; never when the peer has followed.
  base::Instant changing_since_ = base::Instant::never();

  // When the next change would be on time, if all had come kEpochIntervalMin apart.
  base::Instant next_change_at_;

  base::Instant began_at_;  // of the newest epoch
  uint64_t bytes_ = 0;      // sealed and opened since then
  uint64_t forgeries_ = 0;  // since then
};

}  // namespace securefabric::transport
