#include <bit>

#include "collective/plan_algorithms.h"
#include "collective/plan_parts.h"

namespace securefabric::collective {
namespace {

// Where a rank stands in recursive doubling. Of the first 2 * extra ranks the even ones fold their
// value into their odd neighbour and step aside; those that stay are numbered 0..active-1 in order
// of rank, so that the values under any range of numbers come from a range of ranks.
struct Fold {
  uint32_t active = 0;  // the largest power of two that is not above the size
  uint32_t extra = 0;   // size - active: the ranks that step aside

  explicit Fold(uint32_t size) : active(std::bit_floor(size)), extra(size - active) {}
  bool is_paired(uint32_t rank) const { return rank < 2 * extra; }
  bool steps_aside(uint32_t rank) const { return is_paired(rank) && rank % 2 == 0; }
  uint32_t number_of(uint32_t rank) const { return is_paired(rank) ? rank / 2 : rank - extra; }
  uint32_t rank_of(uint32_t number) const {
    return number < extra ? 2 * number + 1 : number + extra;
  }
};

// Slots: the fold, then the rounds of the exchange, then the unfold.
constexpr uint32_t kFoldSlot = 0;
constexpr uint32_t kUnfoldSlot = 1;
constexpr uint32_t kRoundSlot = 2;

// The value a rank has accumulated so far.
struct Accumulator {
  Region region;                   // where it is
  uint32_t ready_after = kNoStep;  // the step that completes it
};

// Sends the accumulated value to `partner` and adds the partner's to it. Both compute
// lower (+) upper, so both get the same bits.
//
// A send that is copied leaves its region free at once: the sum is made in place. A longer one
// reads its region until it is delivered, and waiting for that would cost a round trip per round:
// the sum goes to the other of the two buffers, which the previous round's send has left by then.
class Exchange {
 public:
  Exchange(Schedule& schedule, const Region& output, const PlanOptions& options)
      : schedule_(schedule), is_copied_(output.length <= options.copied_send_bytes) {
    places_[0] = output;
    places_[1] = is_copied_ ? output : take_scratch(schedule, output.length);
  }

  void run(Accumulator& value, uint32_t partner, uint32_t slot, bool partner_is_lower) {
    const bool is_in_output = value.region == places_[0];
    const uint32_t target = is_in_output ? 1 : 0;
    const uint32_t sent =
        schedule_.add(make_send(partner, slot, value.region), {value.ready_after});
    Step receive = make_receive_reduce(partner, slot, places_[target], value.region);
    receive.received_is_left = partner_is_lower;
    const uint32_t was_read_by = is_copied_ ? (is_in_output ? sent : kNoStep) : last_sent_[target];
    value = {places_[target], schedule_.add(receive, {value.ready_after, was_read_by})};
    last_sent_[1 - target] = sent;
  }

  // The send, if any, that may still read the output.
  uint32_t last_sent_from_output() const { return last_sent_[0]; }

 private:
  Schedule& schedule_;
  Region places_[2];                            // the output, and scratch if sends are not copied
  uint32_t last_sent_[2] = {kNoStep, kNoStep};  // the latest send of each place
  bool is_copied_ = false;                      // sends complete at once
};

}  // namespace

// Recursive doubling. With a power of two of ranks, in round i each rank exchanges everything it
// has summed so far with the partner whose number differs in bit i; after log2(size) rounds all
// have the sum of all. Any other number of ranks is first folded to a power of two: of `extra`
// neighbouring pairs the even rank sends its value to the odd one, and gets the result at the end.
// Every sum is lower (+) upper of two ranges of ranks, on both partners, which makes the results
// equal bit by bit. AVG is divided by every rank that stays, all from the same sum.
Schedule plan_all_reduce_doubling(const CollectiveRequest& request, const PlanOptions& options) {
  Schedule schedule = make_schedule(request);
  const Region& output = request.outputs[0];
  const Fold fold(request.size);
  if (output.length == 0) return schedule;

  Accumulator value{.region = request.inputs[0]};
  if (has_prepare(request)) {
    value = {output, schedule.add(make_prepare(output, value.region))};
  }
  if (fold.steps_aside(request.rank)) {
    const uint32_t neighbour = request.rank + 1;
    schedule.add(make_send(neighbour, kFoldSlot, value.region), {value.ready_after});
    // The result overwrites what was sent, and need not wait for that to be acknowledged: the
    // neighbour has the result only after it had every byte. It does wait for the prepared value.
    schedule.add(make_receive(neighbour, kUnfoldSlot, output), {value.ready_after});
    return schedule;
  }
  if (fold.is_paired(request.rank)) {
    Step receive = make_receive_reduce(request.rank - 1, kFoldSlot, output, value.region);
    receive.received_is_left = true;
    value = {output, schedule.add(receive, {value.ready_after})};
  }

  Exchange exchange(schedule, output, options);
  const uint32_t number = fold.number_of(request.rank);
  for (uint32_t bit = 1, slot = kRoundSlot; bit < fold.active; bit <<= 1, ++slot) {
    exchange.run(value, fold.rank_of(number ^ bit), slot, (number & bit) != 0);
  }
  if (value.region != output) {
    value = {output, schedule.add(make_copy(output, value.region),
                                  {value.ready_after, exchange.last_sent_from_output()})};
  }
  if (has_finish(request)) {
    value.ready_after = schedule.add(make_finish(output), {value.ready_after});
  }
  if (fold.is_paired(request.rank)) {
    schedule.add(make_send(request.rank - 1, kUnfoldSlot, output), {value.ready_after});
  }
  return schedule;
}

// Ring. The tensor is cut into one chunk per rank, and each chunk travels the ring twice: first
// collecting every rank's contribution until it arrives, complete, at the rank of its own number,
// its owner; then, from there, to be copied by everybody. At position 0 a rank sends the chunk
// before its own, at position i it receives, adds to and sends on the chunk i before that one, and
// at position size-1 it receives its own, which is divided there if it is an average. Each chunk is
// cut into segments that travel on their own: a segment that was reduced is sent on while it is
// still in the cache, and while the next one arrives. With two ranks this is the direct exchange
// where each owns one half.
//
// Every chunk is reduced along one path by one chain of ranks and then copied, which makes the
// results equal bit by bit.
//
// The second journey's receives overwrite what the first one sent without waiting for that to be
// acknowledged: a segment comes back complete only after it passed the next rank, which must have
// had every byte of ours to pass it on.
Schedule plan_all_reduce_ring(const CollectiveRequest& request, const PlanOptions& options) {
  Schedule schedule = make_schedule(request);
  const uint32_t size = request.size;
  const auto inputs = cut_evenly(request.inputs[0], size, request.element_bytes);
  const auto outputs = cut_evenly(request.outputs[0], size, request.element_bytes);
  const Segmentation segmentation = plan_segments(
      longest_length(outputs), options.segments_per_chunk, 5 * uint64_t{size}, options);
  const uint32_t segments = segmentation.segments_max;
  const uint32_t next = rank_at(request, 1);
  const uint32_t previous = rank_at(request, -1);
  const auto collect_slot = [&](uint32_t chunk, uint32_t j) { return chunk * segments + j; };
  const auto copy_slot = [&](uint32_t chunk, uint32_t j) { return (size + chunk) * segments + j; };

  // The step that leaves (position, segment) as it is sent on.
  std::vector<uint32_t> done(size_t{size} * segments, kNoStep);
  for (uint32_t position = 0; position < size; ++position) {
    const uint32_t chunk = rank_at(request, -1 - int64_t{position});
    const bool is_own = position == size - 1;
    for (uint32_t j = 0; j < segmentation.count(outputs[chunk]); ++j) {
      const Region target = segmentation.segment(outputs[chunk], j);
      Region value = segmentation.segment(inputs[chunk], j);
      uint32_t after = kNoStep;
      if (has_prepare(request)) {
        // One position ahead of the data, not everything before the first packet leaves.
        const uint32_t pace = position >= 2 ? done[(position - 1) * segments + j] : kNoStep;
        after = schedule.add(make_prepare(target, value), {pace});
        value = target;
      }
      if (position > 0) {
        after = schedule.add(make_receive_reduce(previous, collect_slot(chunk, j), target, value),
                             {after});
        value = target;
      }
      if (is_own && has_finish(request)) after = schedule.add(make_finish(target), {after});
      const uint32_t slot = is_own ? copy_slot(chunk, j) : collect_slot(chunk, j);
      schedule.add(make_send(next, slot, value), {after});
      done[position * segments + j] = after;
    }
  }
  for (uint32_t position = 1; position < size; ++position) {
    const uint32_t chunk = rank_at(request, -int64_t{position});
    for (uint32_t j = 0; j < segmentation.count(outputs[chunk]); ++j) {
      const Region target = segmentation.segment(outputs[chunk], j);
      const uint32_t received = schedule.add(make_receive(previous, copy_slot(chunk, j), target),
                                             {done[(position - 1) * segments + j]});
      if (position < size - 1) {
        schedule.add(make_send(next, copy_slot(chunk, j), target), {received});
      }
    }
  }
  return schedule;
}

}  // namespace securefabric::collective
