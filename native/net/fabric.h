// The fabric of one process: keys, sockets, engines and threads, shared by all its process groups.
//
// A rank has one engine, or several where one core cannot fill its links. Each is a driver with key
// pair, sockets and threads of its own, and shares nothing with the others: engine i of a rank
// talks to engine i of every other. A group is in all of them. The first one takes part in every
// operation; whoever submits a large one may give each engine a part of it. When a group breaks in
// one engine, the others are told (Driver::hand_in).
//
// Peers are found through a callback (`Resolve`) that reads and verifies their roster entries; it
// may take its time, so it runs on a thread of its own and the engines are answered when it is
// done: all of them, whichever asked, so that an entry is read once and each of them finds out by
// itself when the peer dies. A peer that a stranger may have made us look up is known to all
// engines, and linked by none until it is heard there or wanted by one.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/result.h"
#include "collective/tuning.h"
#include "crypto/aead.h"
#include "crypto/kdf.h"
#include "crypto/secret.h"
#include "net/driver.h"

namespace securefabric::net {

struct FabricConfig {
  base::Rank rank;                     // of this process in the world
  uint32_t world_size = 1;             // ranks in the job
  uint32_t local_world_size = 0;       // ranks on this host; 0 when nobody knows
  size_t engines = 1;                  // of each rank
  std::vector<std::string> addresses;  // IPs to bind; empty: by `interfaces`
  std::string interfaces;              // grammar of SECUREFABRIC_SOCKET_IFNAME; empty: default
  size_t sockets_per_interface = 3;    // UDP sockets bound on each address
  uint16_t port_first = 0;             // sockets take free ports from here; 0: any port
  uint16_t port_last = 0;              // up to here, inclusive; at least port_first
  size_t paths_per_peer = 8;           // sending paths to each peer, at most
  base::Duration epoch_age = transport::EpochLimits().age;  // a link's keys are replaced after it
  uint64_t epoch_bytes = transport::EpochLimits().bytes;    // or after these
  base::Duration join_timeout = transport::kJoinTimeoutDefault;
  base::Duration death_timeout = transport::kDeathTimeoutDefault;
  base::Duration heartbeat = transport::kHeartbeatDefault;
  bool use_gso = true;             // segmentation offload, where the kernel has it
  bool use_gro = true;             // receive offload, likewise
  std::string spin = "auto";       // "always", "never" or "auto"
  unsigned generation_bits = 0;    // 0: the most that the suite allows
  collective::TuningTable tuning;  // the same on all ranks
};

// What the own roster entry says of one engine.
struct EngineEntry {
  std::array<uint8_t, 32> public_key{};        // X25519
  base::Spi spi_base;                          // the SPI for rank r is spi_base + r
  std::vector<base::SocketAddress> addresses;  // one per socket
};

// A path of one engine to one peer, as it is now.
struct FabricPath {
  uint32_t engine = 0;
  base::Rank peer;
  transport::PathReport report;
};

// What statistics show: sums over the engines, each read in one moment.
struct FabricStats {
  size_t engines = 0;         // of this rank
  size_t peers = 0;           // with a link, which each engine has
  size_t paths_active = 0;    // confirmed and usable now
  size_t paths_used = 0;      // that carried more than their confirmation
  bool has_gso = false;       // no destination has refused it
  bool has_gro = false;       // reads may be joined
  uint64_t kernel_drops = 0;  // datagrams lost to full receive buffers
  transport::TrafficCounters traffic;
  transport::DropCounters drops;
};

// A group as whoever makes it on this rank describes it.
struct GroupSpec {
  std::string identity;           // equal on all members (PROTOCOL.md §7.1)
  std::string board;              // where members are found, as Resolve takes it
  std::string name;               // for messages
  uint32_t rank = 0;              // this rank's place among the members
  std::vector<base::Rank> ranks;  // members
};

class Fabric {
 public:
  // A peer as each of our engines has to know it, in their order.
  using Peer = std::vector<transport::PeerDescription>;
  // The verified entry of a rank; nothing while the rank has published none; an error when what it
  // published cannot be accepted. `board` is that of a group that the rank is a member of. Without
  // `is_needed` nobody may learn that we looked: a stranger may have made us. Called
  // on a thread of its own, one call at a time, without locks. It must return in bounded time,
  // because shutdown() waits for it, and not call shutdown() or drop the last reference to us.
  using Resolve = std::function<base::Result<std::optional<Peer>>(const std::string& board,
                                                                  base::Rank rank, bool is_needed)>;
  // One group: an object for each engine, which guards what it says of failures.
  using Groups = std::vector<std::shared_ptr<collective::Group>>;

  // `job_secret` is empty where certificates alone say who is a member.
  static base::Result<std::shared_ptr<Fabric>> make(const FabricConfig& config, crypto::Suite suite,
                                                    crypto::SecretBuffer job_secret,
                                                    Resolve resolve);
  Fabric(const Fabric&) = delete;
  Fabric& operator=(const Fabric&) = delete;

  // What the own roster entry says.
  const base::BootId& boot_id() const { return boot_id_; }
  const std::vector<EngineEntry>& engine_entries() const { return entries_; }
  size_t datagram_bytes_max() const { return datagram_bytes_max_; }
  crypto::Suite suite() const { return suite_; }
  base::Rank rank() const { return rank_; }

  // The entry as published: link keys are bound to it. Before the first group is added.
  base::Status set_entry(base::Bytes entry);

  // A group joins the fabric. Groups with one identity are numbered, so all members make these in
  // the same order. With `eager_connect` all members are linked now.
  base::Result<Groups> add_group(const GroupSpec& spec, bool eager_connect);
  // Fails what runs in the group. With a reason, the members are told.
  void remove_group(const Groups& groups, const std::optional<base::Error>& reason);
  // Fails every operation of the group and every later one, and tells the members.
  void abort_group(const Groups& groups, const base::Error& error);
  // Links all members now.
  base::Status connect_group(const Groups& groups);

  // How operations are planned. Set anew only while no operation is being planned, on all ranks.
  const collective::TuningTable& tuning() const { return tuning_; }
  void set_tuning(collective::TuningTable tuning) { tuning_ = std::move(tuning); }

  size_t engines() const { return drivers_.size(); }
  Driver& driver(size_t engine = 0) { return *drivers_[engine]; }
  // Any thread. Waits until all that was sent in a group has arrived, or until `limit` has passed.
  void drain_group(const Groups& groups, base::Duration limit);
  FabricStats stats();
  // Every path to every peer with a link; none when the fabric has ended.
  std::vector<FabricPath> paths();

  // Any thread but the resolver's, idempotent, nothing in a forked child. Bounded: it drains for a
  // few seconds and waits for one call of Resolve.
  void shutdown();

 private:
  // A rank whose entry is looked for.
  struct Wanted {
    base::Instant since;      // when the engine last asked for it
    base::Instant next_at;    // when to look again
    base::Duration interval;  // until the look after that; doubles
    bool is_needed = false;   // or else a hint, which is worth one look
  };
  struct GroupEntry {
    std::string board;              // as Resolve wants it
    std::vector<base::Rank> ranks;  // members
  };

  Fabric() = default;
  ~Fabric() { shutdown(); }
  // Does nothing in a forked child: the threads are the parent's, and what they held or waited for
  // at that moment is held for ever.
  static void destroy(Fabric* fabric);

  // What all engines are made of, beside what each draws for itself.
  struct Materials;
  base::Status make_engine(const Materials& common);
  // While holding the engine of `origin`, whose group broke, or none.
  void on_broken(uint32_t origin, const collective::GroupBroken& broken);
  // While holding no engine: the same for what broke in some before all knew the group.
  void spread_breaks(const Groups& groups);
  void add_stats(Driver& driver, FabricStats& stats) const;
  base::Result<crypto::Hash> digest_of_next(const std::string& identity);
  base::Status check_members(const GroupSpec& spec) const;

  void resolver_loop();
  // The next rank that is due, if there is one; `next_at` is then, or when the next one will be.
  // Only while holding mutex_.
  std::optional<base::Rank> next_due(base::Instant at, base::Instant& next_at);
  // Asks for the entry of one rank; true when the engine was given an answer.
  bool resolve_once(base::Rank rank);
  base::Result<std::optional<Peer>> look_up(const std::string& board, base::Rank rank,
                                            bool is_needed) const;
  // The entry of a rank that is needed was found, or cannot be accepted.
  void answer(base::Rank rank, const base::Result<std::optional<Peer>>& peer);
  // The entry of a rank was found that only a hint led to. False when it cannot be used.
  bool learn(base::Rank rank, const Peer& peer);
  // Every engine but this one, if it is one of ours, links a rank that it knows.
  void link_known(base::Rank rank, uint32_t origin);
  void want(const transport::PeerWanted& wanted, uint32_t origin);

  base::Rank rank_;
  uint32_t world_size_ = 1;
  crypto::Suite suite_ = crypto::Suite::kAes256Gcm;
  base::BootId boot_id_{};
  size_t datagram_bytes_max_ = 0;
  base::Duration join_timeout_;
  bool uses_gro_ = false;
  collective::TuningTable tuning_;

  Resolve resolve_;                               // resolver thread only; gone with it
  std::vector<EngineEntry> entries_;              // by engine
  std::vector<std::unique_ptr<Driver>> drivers_;  // by engine; complete before the first group
  std::map<crypto::Hash, uint64_t> made_;   // groups made so far, by the hash of their identity
  std::mutex mutex_;                        // guards what follows; never held while calling out
  std::condition_variable wake_;            // the resolver thread has something to do
  std::map<base::Rank, Wanted> wanted_;     // ranks to resolve
  std::set<base::Rank> known_;              // ranks that a hint led to: every engine knows them
  std::map<uint64_t, GroupEntry> groups_;   // by wire id
  std::atomic<bool> is_stopping_{false};    // written under mutex_
  std::optional<FabricStats> final_stats_;  // taken when the shutdown began
  std::unique_ptr<std::thread> resolver_thread_;
};

}  // namespace securefabric::net
