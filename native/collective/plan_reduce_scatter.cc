#include <algorithm>
#include <utility>

#include "collective/plan_algorithms.h"
#include "collective/plan_parts.h"

namespace securefabric::collective {

// Direct exchange. Every rank sends each other rank its contribution to that rank's chunk, and adds
// the size-1 contributions to its own in a fixed order: those of the ranks before it, nearest
// first, around the ring. Each starts sending with the rank after it, so nobody is everybody's
// first target, and contributions tend to arrive in the order in which they are added.
Schedule plan_reduce_scatter_direct(const CollectiveRequest& request, const PlanOptions&) {
  Schedule schedule = make_schedule(request);
  const Region& output = request.outputs[0];
  Region value = request.inputs[request.rank];
  uint32_t after = kNoStep;
  if (has_prepare(request) && output.length > 0) {
    after = schedule.add(make_prepare(output, value));
    value = output;
  }
  for (uint32_t distance = 1; distance < request.size; ++distance) {
    const uint32_t peer = rank_at(request, distance);
    Region contribution = request.inputs[peer];
    if (contribution.length == 0) continue;
    uint32_t prepared = kNoStep;
    if (has_prepare(request)) {
      const Region scaled = take_scratch(schedule, contribution.length);
      prepared = schedule.add(make_prepare(scaled, contribution));
      contribution = scaled;
    }
    schedule.add(make_send(peer, 0, contribution), {prepared});
  }
  if (output.length == 0) return schedule;
  for (uint32_t distance = 1; distance < request.size; ++distance) {
    const uint32_t peer = rank_at(request, -int64_t{distance});
    after = schedule.add(make_receive_reduce(peer, 0, output, value), {after});
    value = output;
  }
  if (has_finish(request)) schedule.add(make_finish(output), {after});
  return schedule;
}

namespace {

// The ring as it is being planned. The inputs may not be written, so partial sums live in scratch
// memory on their way through a rank, and that must not grow with the tensors. Chunks are therefore
// cut into slices of some segments: slice 0 of all chunks travels the ring, then slice 1, and so
// on. Two slices, one per `lane`, are under way at any time: a slice starts when the one two before
// it has come all the way round. A lane has a number of `places`, room for one slice of one chunk
// each, that its positions use in turn; a piece of a place is free again when the send that read
// it last is delivered.
//
// Two places suffice for progress: what a rank receives at some position waits for a send at an
// earlier position only, and so on down to position 0, which waits for no one in its slice.
class ReduceScatterRing {
 public:
  ReduceScatterRing(const CollectiveRequest& request, const PlanOptions& options)
      : request_(request),
        schedule_(make_schedule(request)),
        segmentation_(plan_segments(longest_length(request.inputs), options.segments_per_chunk,
                                    3 * uint64_t{request.size}, options)),
        sends_prepared_(has_prepare(request)) {
    const uint64_t segments = segmentation_.segments_max;
    const uint64_t segment_bytes = segmentation_.segment_bytes;
    const uint64_t window_segments = std::max<uint64_t>(4, options.window_bytes / segment_bytes);
    slice_segments_ = std::min(segments, window_segments / 4);
    lanes_ = segments > slice_segments_ ? 2 : 1;
    // Of the size-1 positions that send, the first sends its input, unless that is prepared.
    const uint64_t kept = request.size - (sends_prepared_ ? 1 : 2);
    const uint64_t affordable = window_segments / std::max<uint64_t>(1, lanes_ * slice_segments_);
    places_ = std::min(kept, std::max<uint64_t>(2, affordable));
    memory_ = take_scratch(schedule_, lanes_ * places_ * slice_segments_ * segment_bytes);
    last_reader_.assign(lanes_ * places_ * slice_segments_, kNoStep);
    received_.assign(lanes_ * slice_segments_, kNoStep);
  }

  Schedule run() && {
    for (uint64_t begin = 0; begin < segmentation_.segments_max; begin += slice_segments_) {
      for (uint32_t position = 0; position < request_.size; ++position) {
        const uint32_t chunk = rank_at(request_, -1 - int64_t{position});
        const uint64_t count = segmentation_.count(request_.inputs[chunk]);
        const uint64_t end = std::min(count, begin + slice_segments_);
        for (uint64_t j = begin; j < end; ++j) {
          if (position == request_.size - 1)
            add_own(chunk, static_cast<uint32_t>(j));
          else
            add_passing(position, chunk, static_cast<uint32_t>(j));
        }
      }
    }
    return std::move(schedule_);
  }

 private:
  uint64_t lane_of(uint32_t segment) const { return segment / slice_segments_ % lanes_; }
  uint32_t slot_of(uint32_t chunk, uint32_t segment) const {
    return chunk * segmentation_.segments_max + segment;
  }
  // The piece of scratch memory that keeps (position, segment), as an index into last_reader_.
  uint64_t piece_of(uint32_t position, uint32_t segment) const {
    const uint64_t place = lane_of(segment) * places_ + position % places_;
    return place * slice_segments_ + segment % slice_segments_;
  }
  // The latest receive of that segment's place in the slice; at first, in the slice two before. It
  // paces what needs no data: the engine should not prepare and send everything at once.
  uint32_t& received(uint32_t segment) {
    return received_[lane_of(segment) * slice_segments_ + segment % slice_segments_];
  }

  // A segment of another rank's chunk: received but at position 0, and sent on.
  void add_passing(uint32_t position, uint32_t chunk, uint32_t segment) {
    const uint32_t slot = slot_of(chunk, segment);
    const Region input = segmentation_.segment(request_.inputs[chunk], segment);
    if (position == 0 && !sends_prepared_) {
      schedule_.add(make_send(rank_at(request_, 1), slot, input), {received(segment)});
      return;
    }
    const uint64_t piece = piece_of(position, segment);
    const Region sum = part_of(memory_, piece * segmentation_.segment_bytes, input.length);
    Region value = input;
    uint32_t after = last_reader_[piece];
    if (sends_prepared_) {
      after = schedule_.add(make_prepare(sum, input), {after, received(segment)});
      value = sum;
    }
    if (position > 0) {
      after = schedule_.add(make_receive_reduce(rank_at(request_, -1), slot, sum, value), {after});
      received(segment) = after;
    }
    last_reader_[piece] = schedule_.add(make_send(rank_at(request_, 1), slot, sum), {after});
  }

  // A segment of this rank's own chunk, whose sum ends its journey in the output.
  void add_own(uint32_t chunk, uint32_t segment) {
    Region value = segmentation_.segment(request_.inputs[chunk], segment);
    const Region output = segmentation_.segment(request_.outputs[0], segment);
    uint32_t after = kNoStep;
    if (sends_prepared_) {
      after = schedule_.add(make_prepare(output, value), {received(segment)});
      value = output;
    }
    const uint32_t slot = slot_of(chunk, segment);
    after = schedule_.add(make_receive_reduce(rank_at(request_, -1), slot, output, value), {after});
    received(segment) = after;
    if (has_finish(request_)) schedule_.add(make_finish(output), {after});
  }

  const CollectiveRequest& request_;   // what is asked for
  Schedule schedule_;                  // so far
  Segmentation segmentation_;          // of the chunks
  bool sends_prepared_ = false;        // PREMUL_SUM
  uint64_t slice_segments_ = 0;        // segments of each chunk that travel together
  uint64_t lanes_ = 1;                 // slices under way at a time
  uint64_t places_ = 0;                // per lane: slices of a chunk that have room
  Region memory_;                      // lanes_ * places_ * slice_segments_ segments
  std::vector<uint32_t> last_reader_;  // per piece of memory_: the send that may still read it
  std::vector<uint32_t> received_;     // see received()
};

}  // namespace

// Ring. Each chunk travels the ring once, from the rank after its owner to its owner, and collects
// every rank's contribution. At position 0 a rank sends its contribution to the chunk before its
// own, at position i it receives the chunk i before that one, adds its contribution and sends the
// sum on, and at position size-1 it receives its own chunk into the output, where an average is
// divided. Segments travel on their own, as in the all_reduce ring.
Schedule plan_reduce_scatter_ring(const CollectiveRequest& request, const PlanOptions& options) {
  return ReduceScatterRing(request, options).run();
}

}  // namespace securefabric::collective
