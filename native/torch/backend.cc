#include "torch/backend.h"

#include <algorithm>
#include <array>

#include "crypto/secret.h"
#include "net/clock.h"
#include "torch/errors.h"
#include "torch/store_prefix.h"
#include "torch/unlocked_gil.h"
#include "torch/versions.h"

namespace securefabric::torch_room {

using base::Duration;
using base::Error;
using base::ErrorCode;
using base::Instant;
using Works = c10::intrusive_ptr<c10d::Work>;

namespace {

constexpr Duration kDrainLimit = Duration::seconds(5);

}  // namespace

c10::intrusive_ptr<Backend::Options> Backend::Options::copy_of(const Options& other) {
  auto copy = c10::make_intrusive<Options>(other.timeout, other.backend);
  copy->group_name = other.group_name;
  copy->group_desc = other.group_desc;
  copy->global_ranks_in_group = other.global_ranks_in_group;
  copy->test_stages_host_tensors = other.test_stages_host_tensors;
  copy->test_stripe_bytes = other.test_stripe_bytes;
#if SF_TORCH_SINCE(13)
  copy->use_pg_for_symm_mem_rendezvous = other.use_pg_for_symm_mem_rendezvous;
#endif
  return copy;
}

c10::intrusive_ptr<c10d::Backend::Options> Backend::getBackendOptions() {
  return Options::copy_of(*options_);
}

// --- Life --------------------------------------------------------------------------------------

Backend::Backend(std::shared_ptr<net::Fabric> fabric, Membership membership,
                 c10::intrusive_ptr<Options> options, bool eager_connect)
    : c10d::Backend(membership.rank, membership.size),
      options_(std::move(options)),
      board_(membership.board),
      keeper_(std::move(membership.keeper)) {
  const std::vector<int64_t>& global_ranks = membership.global_ranks;
  TORCH_CHECK(global_ranks.size() == static_cast<size_t>(size_), "group ", membership.name, " has ",
              size_, " ranks, but ", global_ranks.size(), " global ranks were given");
  net::GroupSpec spec{
      std::move(membership.identity), board_, membership.name, static_cast<uint32_t>(rank_), {}};
  for (const int64_t global : global_ranks) {
    const bool is_rank = global >= 0 && global < UINT32_MAX;  // else one outside of every job
    spec.ranks.push_back({is_rank ? static_cast<uint32_t>(global) : UINT32_MAX});
  }
  options_->timeout = bounded(options_->timeout);
  options_->group_name = membership.name;
  options_->global_ranks_in_group.assign(global_ranks.begin(), global_ranks.end());
  auto context = std::make_shared<GroupContext>();
  context->groups = value_or_throw(fabric->add_group(spec, eager_connect));
  context->fabric = std::move(fabric);
  context->ledger = std::make_shared<WorkLedger>();
  context->queue = std::make_shared<IssueQueue>();
  context->presented_name = options_->backend;
  context->stages_host_tensors = options_->test_stages_host_tensors;
  context->stripe_bytes = options_->test_stripe_bytes;
  context_ = std::move(context);
  init();
}

Backend::~Backend() {
  if (crypto::forked_child()) return;
  leave();
}

void Backend::abort() {
  if (crypto::forked_child()) return;
  const Error error{ErrorCode::kAborted, "abort() was called on rank " +
                                             std::to_string(group().ranks[group().rank].value) +
                                             " of process group '" + group().name + "'"};
  fabric().abort_group(context_->groups, error);
}

void Backend::shutdown() {
  if (!crypto::forked_child()) leave();
}

// Ends the group, and first, within a time, the collectives that were handed over; and what this
// rank has sent arrives, since others may still be in an operation that is over here.
void Backend::leave() {
  if (is_shut_down_.exchange(true)) return;
  // The thread that has the engine, or ends a collective, may be waiting for the GIL in a callback.
  const UnlockedGil unlocked;
  const Instant until = net::now() + kDrainLimit;
  std::shared_ptr<Phase> phase;
  {
    const std::lock_guard<std::mutex> lock(issue_mutex_);
    phase = context_->queue->begin_phase();
  }
  close_and_wait(*phase, until);
  if (getError() == c10d::ErrorType::SUCCESS) {
    fabric().drain_group(context_->groups, until - net::now());
  }
  fabric().remove_group(context_->groups, std::nullopt);
  std::shared_ptr<const void> kept;  // Python's: given up without the lock
  const std::lock_guard<std::mutex> lock(issue_mutex_);
  kept.swap(keeper_);
}

// What breaks a group in another engine is in the first one's hands before anybody sees it.
c10d::ErrorType Backend::getError() {
  std::optional<Error> broken;
  const base::Status status =
      fabric().driver().run([&](collective::Engine&, Instant) { broken = group().broken; });
  if (!status) return c10d::ErrorType::COMM_ERROR;
  if (!broken) return c10d::ErrorType::SUCCESS;
  switch (broken->code) {
    case ErrorCode::kTimeout: return c10d::ErrorType::TIMEOUT;
    case ErrorCode::kPeerLost:
    case ErrorCode::kAborted: return c10d::ErrorType::REMOTE_ERROR;
    default: return c10d::ErrorType::COMM_ERROR;
  }
}

CallBuilder Backend::begin(const char* name, c10d::OpType type, std::chrono::milliseconds timeout,
                           bool is_async) const {
  return {context_, name, type, timeout == c10d::kUnsetTimeout ? options_->timeout : timeout,
          is_async};
}

Works Backend::issue(CallBuilder builder) {
  const std::lock_guard<std::mutex> lock(issue_mutex_);
  const uint64_t sequence = sequence_.fetch_add(1) + 1;
  Works work = std::move(builder).start(sequence);
  note_issued(work);
  return work;
}

void Backend::note_issued(const Works& work) {
  if (is_coalescing_) coalesced_.push_back(work);
}

void Backend::registerOnCompletionHook(WorkLedger::Hook&& hook) {
  TORCH_CHECK(!context_->ledger->has_hook(), "a completion hook is registered already");
  TORCH_CHECK(sequence_.load() == 0, "register the completion hook before the first operation");
  onCompletionHook_ = hook;  // what hasHooks() looks at
  context_->ledger->set_hook(std::move(hook));
}

void Backend::startCoalescing() {
  // torch does not end what an exception has left. Works go away outside of the lock.
  std::vector<Works> abandoned;
  const std::lock_guard<std::mutex> lock(issue_mutex_);
  is_coalescing_ = true;
  abandoned.swap(coalesced_);
}

Works Backend::endCoalescing() {
  const std::lock_guard<std::mutex> lock(issue_mutex_);
  is_coalescing_ = false;
  return c10::make_intrusive<CoalescedWork>(rank_, std::exchange(coalesced_, {}));
}

// --- Groups made of groups ---------------------------------------------------------------------

namespace {

constexpr size_t kRankDigitsMax = 10;

// The same text as securefabric/_group_identity.py makes: each part behind its length.
std::string joined(std::initializer_list<std::string> parts) {
  std::string text;
  for (const std::string& part : parts) {
    text.append(std::to_string(part.size())).append(":").append(part).append(",");
  }
  return text;
}

std::string listed(const std::vector<int64_t>& ranks) {
  std::string text;
  for (const int64_t rank : ranks) {
    text.append(text.empty() ? "" : ",").append(std::to_string(rank));
  }
  return text;
}

// A member's rank in the job, as the store tells it. Nobody vouches for that: what is no rank is an
// error here, and another rank makes another identity.
int64_t told_rank(const std::vector<uint8_t>& told, int member) {
  const std::string text(told.begin(), told.begin() + std::min(told.size(), kRankDigitsMax + 1));
  const bool is_number = !text.empty() && text.size() <= kRankDigitsMax &&
                         text.find_first_not_of("0123456789") == std::string::npos;
  if (!is_number) {
    throw_error(Error{ErrorCode::kConfig,
                      "the store says what is no rank for member " + std::to_string(member) +
                          " of a merged group; no process of this job has written that"});
  }
  return std::stoll(text);
}

// As torch hands them over; a stranger's options have only what all backends' have.
c10::intrusive_ptr<Backend::Options> adopt(const c10::intrusive_ptr<c10d::Backend::Options>& opts,
                                           const Backend::Options& own) {
  auto adopted = Backend::Options::copy_of(own);
  if (!opts) return adopted;
  adopted->timeout = opts->timeout;
  adopted->group_name = opts->group_name;
  adopted->group_desc = opts->group_desc;
  return adopted;
}

}  // namespace

c10::intrusive_ptr<c10d::Backend> Backend::split(
    const c10::intrusive_ptr<c10d::Store>& /*store*/, const std::vector<int>& ranks,
    const c10::intrusive_ptr<c10d::Backend::Options>& opts) {
  Membership members = beside_this();
  members.rank = -1;
  members.size = static_cast<int>(ranks.size());
  for (size_t i = 0; i < ranks.size(); ++i) {
    TORCH_CHECK(ranks[i] >= 0 && ranks[i] < size_, "securefabric::split: rank ", ranks[i],
                " in a group of ", size_);
    if (ranks[i] == rank_) members.rank = static_cast<int>(i);
    members.global_ranks.push_back(group().ranks[static_cast<size_t>(ranks[i])].value);
  }
  if (members.rank < 0) return nullptr;
  std::array<uint8_t, sizeof(group().wire_id)> id;
  base::ByteWriter(id).u64(group().wire_id);
  members.identity = joined(
      {"split", base::to_hex(id) + base::to_hex(group().tail), listed(members.global_ranks)});
  auto options = adopt(opts, *options_);
  members.name = options->group_name;
  return c10::make_intrusive<Backend>(context_->fabric, std::move(members), std::move(options),
                                      /*eager_connect=*/false);
}

Membership Backend::beside_this() const {
  Membership members;
  members.board = board_;
  const std::lock_guard<std::mutex> lock(issue_mutex_);
  members.keeper = keeper_;
  return members;
}

c10::intrusive_ptr<c10d::Backend> Backend::merge(
    const c10::intrusive_ptr<c10d::Store>& store,
    const c10::intrusive_ptr<c10d::Backend::Options>& opts, const int& rank, const int& size) {
  // torch merges once per device type, over the same store.
  const int64_t turn = store->add("securefabric/merges/" + std::to_string(rank), 1);
  const auto key_of = [turn](int member) {
    return "securefabric/merge/" + std::to_string(turn) + "/" + std::to_string(member);
  };
  auto options = adopt(opts, *options_);
  Membership members = beside_this();
  members.rank = rank;
  members.size = size;
  members.name = options->group_name;
  const std::string own = std::to_string(fabric().rank().value);
  store->set(key_of(rank), std::vector<uint8_t>(own.begin(), own.end()));
  for (int member = 0; member < size; ++member) {
    store->wait({key_of(member)}, options->timeout);
    members.global_ranks.push_back(told_rank(store->get(key_of(member)), member));
  }
  members.identity =
      joined({"merge", prefix_of(store), members.name, listed(members.global_ranks)});
  return c10::make_intrusive<Backend>(context_->fabric, std::move(members), std::move(options),
                                      /*eager_connect=*/false);
}

void Backend::eagerConnectSingleDevice(at::Device /*device*/) {
  (void)fabric().connect_group(context_->groups);
}

}  // namespace securefabric::torch_room
