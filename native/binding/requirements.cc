#include "binding/requirements.h"

#include <mutex>
#include <utility>
#include <vector>

#include "binding/run_apart.h"
#include "core/requirements/requirement_check.h"

namespace replpage::binding {
namespace {

// One for the process: files are hashed again only when they change. Its work is done in turn.
std::mutex cache_mutex;
HashCache& cache() {
  static HashCache hashes;
  return hashes;
}

const char* name_of(FileUse use) {
  switch (use) {
    case FileUse::kExecutable:
      return "executable";
    case FileUse::kMapped:
      return "mapped";
    case FileUse::kMappedShared:
      return "mappedShared";
    case FileUse::kOpen:
      return "open";
    case FileUse::kDirectory:
      break;
  }
  return "directory";
}

const char* name_of(UnmetKind kind) {
  switch (kind) {
    case UnmetKind::kFileMissing:
      return "fileMissing";
    case UnmetKind::kFileDiffers:
      return "fileDiffers";
    case UnmetKind::kDataFile:
      return "dataFile";
    case UnmetKind::kDevice:
      return "device";
    case UnmetKind::kProcessor:
      return "processor";
    case UnmetKind::kXstate:
      return "xstate";
    case UnmetKind::kVdso:
      return "vdso";
    case UnmetKind::kMachine:
      return "machine";
    case UnmetKind::kLimit:
      return "limit";
    case UnmetKind::kBound:
      break;
  }
  return "bound";
}

Napi::Value to_object(Napi::Env env, const FileRequirement& file) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("use", name_of(file.use));
  object.Set("path", file.path);
  object.Set("source", file.source);
  object.Set("sizeBytes", static_cast<double>(file.size));
  object.Set("device", Napi::BigInt::New(env, file.device));
  object.Set("inode", Napi::BigInt::New(env, file.inode));
  object.Set("onNetwork", file.on_network);
  object.Set("written", file.written);
  return object;
}

Napi::Value to_array(Napi::Env env, const std::vector<FileRequirement>& files) {
  Napi::Array array = Napi::Array::New(env, files.size());
  for (uint32_t i = 0; i < files.size(); ++i) array.Set(i, to_object(env, files[i]));
  return array;
}

Napi::Value to_object(Napi::Env env, const Unmet& unmet) {
  Napi::Object object = Napi::Object::New(env);
  object.Set("kind", name_of(unmet.kind));
  object.Set("what", unmet.what);
  object.Set("where", unmet.where);
  object.Set("why", unmet.why);
  object.Set("remedy", unmet.remedy);
  if (unmet.file >= 0) object.Set("file", unmet.file);
  return object;
}

}  // namespace

Napi::Value gather(const Napi::CallbackInfo& info) {
  const auto list = info[0].As<Napi::Array>();
  std::vector<pid_t> pids;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    pids.push_back(list.Get(i).As<Napi::Number>().Int32Value());
  }
  return run_apart(info.Env(), [pids = std::move(pids)]() -> MakeValue {
    const std::lock_guard lock(cache_mutex);
    Requirements found = gather_requirements(pids, cache());
    Bytes bytes = encode_requirements(found);
    return [bytes = std::move(bytes), files = std::move(found.files)](Napi::Env env) {
      Napi::Object object = Napi::Object::New(env);
      object.Set("bytes", Napi::Buffer<uint8_t>::Copy(env, bytes.data(), bytes.size()));
      object.Set("files", to_array(env, files));
      return object;
    };
  });
}

Napi::Value check(const Napi::CallbackInfo& info) {
  const auto buffer = info[0].As<Napi::Buffer<uint8_t>>();
  const Bytes bytes(buffer.Data(), buffer.Data() + buffer.Length());
  const CheckRules rules{.keep_files = info[1].As<Napi::Object>().Get("keepFiles").ToBoolean()};
  return run_apart(info.Env(), [bytes, rules]() -> MakeValue {
    const std::lock_guard lock(cache_mutex);
    Requirements wanted = decode_requirements(bytes);
    auto unmet = check_requirements(wanted, read_machine_facts(), rules, cache());
    return [unmet = std::move(unmet), files = std::move(wanted.files)](Napi::Env env) {
      Napi::Array array = Napi::Array::New(env, unmet.size());
      for (uint32_t i = 0; i < unmet.size(); ++i) array.Set(i, to_object(env, unmet[i]));
      Napi::Object object = Napi::Object::New(env);
      object.Set("unmet", array);
      object.Set("files", to_array(env, files));
      return object;
    };
  });
}

}  // namespace replpage::binding
