#include "collective/schedule.h"

#include "base/check.h"

namespace securefabric::collective {

uint32_t Schedule::add(Step step, std::span<const uint32_t> after) {
  const auto index = static_cast<uint32_t>(steps.size());
  step.dependency_begin = static_cast<uint32_t>(dependencies.size());
  step.dependency_count = 0;
  for (const uint32_t earlier : after) {
    if (earlier == kNoStep) continue;
    SF_CHECK_MSG(earlier < index, std::to_string(earlier) + " >= " + std::to_string(index));
    dependencies.push_back(earlier);
    ++step.dependency_count;
  }
  steps.push_back(step);
  return index;
}

}  // namespace securefabric::collective
