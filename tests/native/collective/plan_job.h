// A collective of a whole group as a test case: memory for every rank, a plan for each, a proof, a
// run in random order, and the result it should have, computed the obvious way.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/check.h"
#include "collective/plan.h"
#include "collective/schedule_checker.h"
#include "collective/schedule_interpreter.h"
#include "collective/stripes.h"

namespace securefabric::collective::testing {

using Planner = Schedule (*)(const CollectiveRequest&, const PlanOptions&);

// How many elements go from rank `from` to rank `to`. Kinds with one input ignore `to`, kinds with
// one output ignore `from`; all_reduce, broadcast and reduce ignore both.
using ElementCount = uint64_t (*)(uint32_t from, uint32_t to);

struct JobSpec {
  OperationKind kind = OperationKind::kAllReduce;  // what the group does
  ReduceOp op = ReduceOp::kNone;                   // SUM, AVG, PREMUL_SUM or none
  DataType type = DataType::kByte;                 // of every element
  uint32_t size = 2;                               // ranks
  uint32_t root = 0;                               // of rooted kinds
  ElementCount elements = nullptr;                 // lengths
  bool in_place = false;                           // outputs are inputs where the kind allows it
  uint64_t gap_elements = 0;                       // between regions in memory
  bool has_random_bits = false;                    // inputs are any bits; there is no expectation
  PlanOptions options = {};                        // of the plan and the run

  std::string describe() const {
    return std::string(operation_kind_name(kind)) + " " + reduce_op_name(op) + " " +
           data_type_name(type) + " size " + std::to_string(size) + " root " +
           std::to_string(root) + (in_place ? " in place" : "") + " gap " +
           std::to_string(gap_elements) + " copied " + std::to_string(options.copied_send_bytes) +
           " window " + std::to_string(options.window_bytes);
  }
};

// The seed of a whole test run: SECUREFABRIC_TEST_SEED replays one.
inline uint64_t base_seed() {
  const char* text = std::getenv("SECUREFABRIC_TEST_SEED");
  return text == nullptr ? 20250101 : std::strtoull(text, nullptr, 10);
}

class Job {
 public:
  explicit Job(const JobSpec& spec) : spec_(spec), random_(base_seed()) {
    for (uint32_t rank = 0; rank < spec.size; ++rank) set_up(rank);
  }

  // Plans and runs; an empty string, or what is wrong.
  std::string run(Planner planner, uint64_t seed) {
    std::string error = run_once(requests_, planner, seed);
    if (error.empty() && !spec_.has_random_bits) error = compare();
    return error;
  }

  // The same in stripes, one after the other.
  std::string run_striped(const StripeOptions& options, Planner planner, uint64_t seed) {
    for (uint32_t stripe = 0; stripe < options.engines; ++stripe) {
      std::vector<CollectiveRequest> requests;
      const uint32_t stripes = count_stripes(requests_[0], options);
      if (stripe >= stripes) break;
      for (uint32_t rank = 0; rank < spec_.size; ++rank) {
        if (count_stripes(requests_[rank], options) != stripes) return "not cut alike";
        requests.push_back(stripe_of(requests_[rank], stripe, stripes));
        requests.back().scratch_buffer = static_cast<uint32_t>(members_[rank].buffers.size());
      }
      std::string error = run_once(requests, planner, seed + stripe);
      if (!error.empty()) return "stripe " + std::to_string(stripe) + ": " + error;
    }
    return compare();
  }

  const CollectiveRequest& request(uint32_t rank) const { return requests_[rank]; }
  const Schedule& schedule(uint32_t rank) const { return members_[rank].schedule; }
  std::string output(uint32_t rank, uint32_t index) const {
    const Region& region = requests_[rank].outputs[index];
    const uint8_t* bytes = members_[rank].buffers[0].data() + region.offset;
    return {reinterpret_cast<const char*>(bytes), region.length};
  }

 private:
  std::string run_once(const std::vector<CollectiveRequest>& requests, Planner planner,
                       uint64_t seed) {
    std::vector<Schedule> schedules;
    size_t steps = 0;
    for (uint32_t rank = 0; rank < spec_.size; ++rank) {
      schedules.push_back(planner(requests[rank], spec_.options));
      steps += schedules.back().steps.size();
      members_[rank].schedule = schedules.back();
    }
    if (steps < 6000) {  // the proof's memory grows with the square
      std::string error = ScheduleChecker(schedules, spec_.options.copied_send_bytes).check();
      if (!error.empty()) return error;
    }
    return ScheduleInterpreter(members_, spec_.type, spec_.op, spec_.options.copied_send_bytes,
                               seed)
        .run();
  }

  bool is(OperationKind kind) const { return spec_.kind == kind; }
  bool is_uniform() const {
    return is(OperationKind::kAllReduce) || is(OperationKind::kBroadcast) ||
           is(OperationKind::kReduce);
  }
  bool has_one_input() const { return is(OperationKind::kAllGather) || is(OperationKind::kGather); }
  bool has_one_output() const {
    return is(OperationKind::kReduceScatter) || is(OperationKind::kScatter);
  }
  bool is_rooted_source() const {
    return is(OperationKind::kBroadcast) || is(OperationKind::kScatter);
  }
  bool is_rooted_sink() const { return is(OperationKind::kReduce) || is(OperationKind::kGather); }

  uint64_t elements(uint32_t from, uint32_t to) const {
    if (is_uniform()) return spec_.elements(0, 0);
    if (has_one_input()) return spec_.elements(from, 0);
    if (has_one_output()) return spec_.elements(0, to);
    return spec_.elements(from, to);
  }

  // Bytes for movement; for reductions small multiples of a half, so that every sum, product with a
  // factor and average below is exact in every type.
  double value(uint32_t from, uint32_t to, uint64_t element) const {
    const uint32_t target = is_uniform() || has_one_input() ? 0 : to;
    const uint64_t mixed = (from * 37 + target * 101 + element * 7 + 3) * 0x9E37'79B9'7F4A'7C15;
    if (spec_.op == ReduceOp::kNone) return static_cast<double>(mixed >> 56);
    return static_cast<double>(mixed >> 60) / 2;
  }

  double factor(uint32_t rank) const {
    return spec_.op == ReduceOp::kPremulSum ? 0.5 * (rank + 1) : 1.0;
  }

  double expected(uint32_t source, uint32_t rank, uint64_t element) const {
    if (spec_.op == ReduceOp::kNone) return value(source, rank, element);
    double sum = 0;
    for (uint32_t from = 0; from < spec_.size; ++from) {
      sum += integer_if_needed(value(from, rank, element)) * factor(from);
    }
    if (spec_.op != ReduceOp::kAvg) return sum;
    return spec_.type == DataType::kFloat32
               ? static_cast<double>(static_cast<float>(sum) / static_cast<float>(spec_.size))
               : sum / spec_.size;
  }

  double integer_if_needed(double number) const {
    const bool is_float = spec_.type == DataType::kFloat32 || spec_.type == DataType::kFloat64 ||
                          spec_.type == DataType::kComplex128;
    return is_float ? number : static_cast<double>(static_cast<int>(number));
  }

  template <typename T>
  static void put(uint8_t* to, double number) {
    const auto typed = static_cast<T>(number);
    std::memcpy(to, &typed, sizeof(T));
  }
  void put(uint8_t* to, double number) const {
    switch (spec_.type) {
      case DataType::kByte:
      case DataType::kUint8: return put<uint8_t>(to, number);
      case DataType::kInt32: return put<int32_t>(to, number);
      case DataType::kFloat32: return put<float>(to, number);
      case DataType::kFloat64: return put<double>(to, number);
      case DataType::kComplex128: put<double>(to, number); return put<double>(to + 8, number);
      default: SF_CHECK(false);
    }
  }

  // Appends a region of some elements to the member's memory.
  Region place(Member& member, uint64_t elements) const {
    const size_t element_bytes = data_type_bytes(spec_.type);
    auto& memory = member.buffers[0];
    const Region region{0, memory.size(), elements * element_bytes};
    memory.resize(memory.size() + (elements + spec_.gap_elements) * element_bytes, 0xDD);
    return region;
  }

  void set_up(uint32_t rank) {
    CollectiveRequest request{.kind = spec_.kind,
                              .reduce_op = spec_.op,
                              .element_bytes = static_cast<uint32_t>(data_type_bytes(spec_.type)),
                              .rank = rank,
                              .size = spec_.size,
                              .root = spec_.root,
                              .scratch_buffer = 1};
    Member member;
    member.factor = factor(rank);
    member.buffers.resize(1);
    const bool has_inputs = !is_rooted_source() || rank == spec_.root;
    const bool has_outputs = !is_rooted_sink() || rank == spec_.root;
    const uint32_t inputs = has_inputs ? (is_uniform() || has_one_input() ? 1 : spec_.size) : 0;
    const uint32_t outputs = has_outputs ? (is_uniform() || has_one_output() ? 1 : spec_.size) : 0;
    for (uint32_t to = 0; to < inputs; ++to) {
      request.inputs.push_back(place(member, elements(rank, to)));
    }
    const uint32_t own_input = inputs > 1 ? rank : 0;
    const uint32_t own_output = outputs > 1 ? rank : 0;
    for (uint32_t from = 0; from < outputs; ++from) {
      const bool is_shared = spec_.in_place && inputs > 0 && from == own_output;
      request.outputs.push_back(is_shared ? request.inputs[own_input]
                                          : place(member, elements(from, rank)));
    }
    fill_inputs(member, request);
    requests_.push_back(std::move(request));
    members_.push_back(std::move(member));
  }

  void fill_inputs(Member& member, const CollectiveRequest& request) {
    const size_t element_bytes = data_type_bytes(spec_.type);
    member.is_defined.emplace_back(member.buffers[0].size(), uint8_t{0});
    for (uint32_t to = 0; to < request.inputs.size(); ++to) {
      const Region& region = request.inputs[to];
      uint8_t* bytes = member.buffers[0].data() + region.offset;
      if (spec_.has_random_bits) random_.fill({bytes, region.length});
      for (uint64_t i = 0; i < region.length / element_bytes && !spec_.has_random_bits; ++i) {
        put(bytes + i * element_bytes, value(request.rank, to, i));
      }
      auto defined = member.is_defined[0].begin() + static_cast<ptrdiff_t>(region.offset);
      std::fill(defined, defined + static_cast<ptrdiff_t>(region.length), uint8_t{1});
    }
    initial_.push_back(member.buffers[0]);
  }

  // Outputs have the expected values, and nothing else has changed.
  std::string compare() const {
    const size_t element_bytes = data_type_bytes(spec_.type);
    for (uint32_t rank = 0; rank < spec_.size; ++rank) {
      std::vector<uint8_t> expectation = initial_[rank];
      const auto& outputs = requests_[rank].outputs;
      for (uint32_t from = 0; from < outputs.size(); ++from) {
        const uint32_t source = is_rooted_source() ? spec_.root : from;
        for (uint64_t i = 0; i < outputs[from].length / element_bytes; ++i) {
          put(expectation.data() + outputs[from].offset + i * element_bytes,
              expected(source, rank, i));
        }
      }
      const auto& memory = members_[rank].buffers[0];
      for (size_t i = 0; i < memory.size(); ++i) {
        if (memory[i] != expectation[i]) {
          return "rank " + std::to_string(rank) + " byte " + std::to_string(i) + " of " +
                 std::to_string(memory.size()) + " is wrong";
        }
      }
    }
    return {};
  }

  JobSpec spec_;                               // what is tested
  base::Random random_;                        // of has_random_bits
  std::vector<CollectiveRequest> requests_;    // per rank
  std::vector<Member> members_;                // per rank
  std::vector<std::vector<uint8_t>> initial_;  // per rank: buffer 0 before the run
};

// Sizes at which algorithms change shape: powers of two, their neighbours, odd ones.
inline const std::vector<uint32_t>& world_sizes() {
  static const std::vector<uint32_t> sizes{2, 3, 4, 5, 6, 7, 8, 9, 16, 17};
  return sizes;
}

// Runs a job with random options and orders; `spec.size`, aliasing and gaps are varied here.
inline void run_everywhere(JobSpec spec, Planner planner, int repetitions = 1) {
  base::Random random(base_seed());
  for (const uint32_t size : world_sizes()) {
    for (int i = 0; i < 2 * repetitions; ++i) {
      spec.size = size;
      spec.in_place = i % 2 == 1;
      spec.gap_elements = random.below(2) * 3;
      spec.root = static_cast<uint32_t>(random.below(size));
      spec.options.segment_bytes_min = 4096;
      spec.options.segment_bytes_max = 4096;
      spec.options.copied_send_bytes = std::vector<uint64_t>{0, 4096, 16384}[random.below(3)];
      spec.options.window_bytes = std::vector<uint64_t>{16 << 10, 128 << 10}[random.below(2)];
      const uint64_t seed = random.next();
      Job job(spec);
      ASSERT_EQ("", job.run(planner, seed))
          << spec.describe() << " seed " << seed
          << ", replay with SECUREFABRIC_TEST_SEED=" << base_seed();
    }
  }
}

}  // namespace securefabric::collective::testing
