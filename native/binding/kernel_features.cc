#include "core/base/kernel_features.h"

#include <sys/utsname.h>

#include <variant>

#include "binding/kernel_features.h"
#include "core/access/access_tracker.h"
#include "core/image/kernel_reader.h"
#include "core/memory/soft_dirty_tracker.h"
#include "core/memory/write_protect_uffd.h"

namespace replpage::binding {

Napi::Value probe_kernel(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Napi::Object features = Napi::Object::New(env);
  utsname name{};
  ::uname(&name);
  features.Set("release", static_cast<const char*>(name.release));
  features.Set("uffdWp", WriteProtectUffd::supported());
  features.Set("softDirty", SoftDirtyTracker::supported());
  if (const std::string& why_not = KernelReader::why_not(); why_not.empty()) {
    features.Set("kernelReader", true);
  } else {
    features.Set("kernelReader", "no: " + why_not);
  }
  for (const AccessSupport& support : access_support()) {
    if (!support.refusal.empty()) continue;
    features.Set("accessTracker", name_of(support.kind));
    break;
  }
  for (const KernelFeature& feature : probe_kernel_features()) {
    std::visit([&](const auto& value) { features.Set(feature.name, value); }, feature.value);
  }
  return features;
}

}  // namespace replpage::binding
