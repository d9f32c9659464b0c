// Which of a peer's paths carries the next burst of data, and how many of them are in use.
//
// Choice: of two random paths that have room, the one that will deliver sooner, by its measured
// delay and what is in flight on it (the power of two choices, Mitzenmacher 2001): as good as
// knowing all, and not every sender runs to the same best path. A path that has just met congestion
// or loss is avoided for a round trip. A path much slower than others is left out while these would
// be through with all that is left to send before it delivers once: the last packet of a message
// counts (after ECF, Lim et al., CoNEXT 2017). What fits one packet gains nothing from spraying: it
// keeps to the path of the last choice while none is clearly faster, whose keys are in the caches.
//
// Set: several paths cost several windows. While nothing collides and the windows are not what
// limits the sender, kPathsWhenCalm are used; when windows limit it and nothing is congested, more.
// When some of the paths are congested and others are not, more are opened: other ports take other
// routes.
#pragma once

#include <memory>
#include <span>

#include "base/random.h"
#include "transport/message_send.h"
#include "transport/path.h"

namespace securefabric::transport {

class PathScheduler {
 public:
  // `is_blind` is for comparisons only: round robin over what has room, nothing learnt.
  explicit PathScheduler(bool is_blind) : is_blind_(is_blind) {}

  using Paths = std::span<const std::unique_ptr<SendingPath>>;

  // Null when no path should take data of `sends` now.
  SendingPath* pick(Paths paths, const SendQueue& sends, base::Random& random, base::Instant now);
  // When a path that pauses takes data again; never when none does.
  base::Instant room_at(Paths paths, base::Instant now) const;
  // Looks the set over, at most every kReviewInterval; returns how many paths more should be
  // opened.
  size_t review(Paths paths, base::Instant now);

 private:
  SendingPath* pick_blindly(Paths paths, base::Instant now);
  bool may_keep(base::Duration fastest, const SendQueue& sends, base::Instant now) const;
  SendingPath* pick_measured(Paths paths, base::Duration delay_max, base::Random& random,
                             base::Instant now, bool is_strict);
  // What was slow is not chosen, and what is not chosen brings no samples: it would stay out for
  // ever, though its link was repaired long ago. So it is asked now and then.
  void measure_again(Paths paths, base::Instant now);
  // Takes up to `count` unused paths into use; returns how many are missing.
  size_t add(Paths paths, size_t count);
  // Gives up the slowest until `count` are in use.
  void keep(Paths paths, size_t count);

  bool is_blind_;
  size_t next_ = 0;                // round robin
  SendingPath* last_ = nullptr;    // the last choice; paths are never closed
  bool was_limited_ = false;       // since the last review, no path had room
  base::Instant last_review_at_;   // see kReviewInterval
  base::Instant last_trouble_at_;  // last review that saw congestion, or a sender limited by it
};

}  // namespace securefabric::transport
