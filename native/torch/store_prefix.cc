#include "torch/store_prefix.h"

namespace securefabric::torch_room {

namespace {

// c10d has no accessor. A class that is derived may name the member, and thus point to it.
class PrefixOf : public c10d::PrefixStore {
 public:
  static const std::string& in(const c10d::PrefixStore& store) {
    return store.*(&PrefixOf::prefix_);
  }
};

}  // namespace

std::string prefix_of(const c10::intrusive_ptr<c10d::Store>& store) {
  std::string text;
  c10::intrusive_ptr<c10d::Store> at = store;
  while (auto* const prefixed = dynamic_cast<c10d::PrefixStore*>(at.get())) {
    text = PrefixOf::in(*prefixed) + "/" + text;
    at = prefixed->getUnderlyingStore();
  }
  return text;
}

}  // namespace securefabric::torch_room
