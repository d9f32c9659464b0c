// The crypto room in Python: the job key, what is known about suites and secret memory, and the
// primitives that tests compare with published vectors and with an independent implementation.
//
// Secrets enter as `bytearray`, which is wiped, where a user holds them (the job key). The vector
// functions below that take and return `bytes` are for values that are published anyway: Python
// cannot wipe `bytes`.
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/check.h"
#include "bindings.h"
#include "crypto/aead.h"
#include "crypto/job_key.h"
#include "crypto/kdf.h"
#include "crypto/key_exchange.h"
#include "crypto/key_schedule.h"
#include "crypto/packet_key.h"
#include "crypto/secret.h"

namespace securefabric::python {
namespace {

namespace py = pybind11;
using namespace crypto;  // NOLINT: this file is the Python face of that room
using base::Bytes;

void require_size(const char* what, size_t size, size_t needed) {
  if (size == needed) return;
  throw py::value_error(std::string(what) + " has " + std::to_string(size) +
                        " bytes and needs exactly " + std::to_string(needed));
}

// Copies a published value into secret memory; the Python object keeps its own copy.
SecretBuffer to_secret(Bytes bytes) {
  if (bytes.size() > kSecretBytesMax) throw py::value_error("value too large");
  SecretBuffer secret = SecretBuffer::allocate(bytes.size());
  std::copy(bytes.begin(), bytes.end(), secret.bytes().begin());
  return secret;
}

// The one named, else the preferred one.
const AeadProvider& provider_of(const std::string& suite_text, const std::string& name = "") {
  const Suite suite = unwrap(parse_suite(suite_text));
  if (name.empty()) return *unwrap(find_provider(suite));
  for (const AeadProvider* candidate : candidate_providers(suite)) {
    if (name == candidate->name()) return *candidate;
  }
  throw py::value_error(suite_text + " has no provider " + name + " on this CPU");
}

std::vector<std::string> providers(const std::string& suite) {
  std::vector<std::string> names;
  for (const AeadProvider* candidate : candidate_providers(unwrap(parse_suite(suite)))) {
    names.emplace_back(candidate->name());
  }
  return names;
}

// Name, provider, refusal: which implementation runs a suite in this process, or why none does.
using SuiteInfo = std::tuple<std::string, std::optional<std::string>, std::optional<std::string>>;

std::vector<SuiteInfo> suites() {
  std::vector<SuiteInfo> infos;
  for (const Suite suite : all_suites()) {
    const auto found = find_provider(suite);
    if (found.ok()) {
      infos.emplace_back(suite_name(suite), found.value()->name(), std::nullopt);
    } else {
      infos.emplace_back(suite_name(suite), std::nullopt, found.error().message);
    }
  }
  return infos;
}

// A fresh bytes object of `size`, filled by `write` before anybody else sees it.
template <typename Write>
py::bytes make_bytes(size_t size, Write&& write) {
  auto made = py::reinterpret_steal<py::bytes>(
      PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
  if (!made) throw py::error_already_set();
  write(base::MutableBytes(reinterpret_cast<uint8_t*>(PyBytes_AS_STRING(made.ptr())), size));
  return made;
}

std::unique_ptr<AeadKey> key_of(const AeadProvider& provider, const py::bytes& key,
                                const py::bytes& nonce) {
  require_size("key", view_of(key).size(), provider.key_bytes());
  require_size("nonce", view_of(nonce).size(), provider.nonce_bytes());
  return provider.make_key(view_of(key));
}

std::vector<Bytes> views_of(const std::vector<py::bytes>& parts) {
  std::vector<Bytes> views;
  for (const py::bytes& part : parts) views.push_back(view_of(part));
  return views;
}

size_t sealed_bytes(const std::vector<Bytes>& parts) {
  size_t size = kAuthTagBytes;
  for (const Bytes part : parts) size += part.size();
  return size;
}

py::bytes aead_seal(const std::string& suite, const py::bytes& key, const py::bytes& nonce,
                    const py::bytes& aad, const py::bytes& data, const std::string& provider) {
  const auto aead = key_of(provider_of(suite, provider), key, nonce);
  const Bytes part = view_of(data);
  return make_bytes(part.size() + kAuthTagBytes, [&](base::MutableBytes out) {
    aead->seal(view_of(nonce), view_of(aad), std::span(&part, 1), out);
  });
}

std::optional<py::bytes> aead_open(const std::string& suite, const py::bytes& key,
                                   const py::bytes& nonce, const py::bytes& aad,
                                   const py::bytes& sealed, const std::string& provider) {
  const auto aead = key_of(provider_of(suite, provider), key, nonce);
  const Bytes bytes = view_of(sealed);
  if (bytes.size() < kAuthTagBytes) return std::nullopt;
  bool verified = false;
  py::bytes opened = make_bytes(bytes.size() - kAuthTagBytes, [&](base::MutableBytes out) {
    verified = aead->open(view_of(nonce), view_of(aad), bytes, out);
  });
  if (!verified) return std::nullopt;
  return opened;
}

// Work to be timed by the caller: `packets` packets of a throw-away key, in cache.
void exercise(const std::string& suite, size_t packet_bytes, size_t packets, bool opens,
              const std::string& provider_name) {
  if (packet_bytes > 65'535) throw py::value_error("packet_bytes above 65535");
  const AeadProvider& provider = provider_of(suite, provider_name);
  const std::vector<uint8_t> key(provider.key_bytes());
  const std::vector<uint8_t> nonce(provider.nonce_bytes());
  const std::vector<uint8_t> aad(16);
  std::vector<uint8_t> data(packet_bytes);
  std::vector<uint8_t> sealed(packet_bytes + kAuthTagBytes);
  const Bytes part = data;
  const py::gil_scoped_release others_may_run;
  const auto aead = provider.make_key(key);
  aead->seal(nonce, aad, std::span(&part, 1), sealed);
  for (size_t i = 0; i < packets; ++i) {
    if (!opens) {
      aead->seal(nonce, aad, std::span(&part, 1), sealed);
    } else if (!aead->open(nonce, aad, sealed, data)) {
      SF_CHECK_MSG(false, suite);
    }
  }
}

py::bytes hkdf(const py::bytes& salt, const py::bytes& input, const py::bytes& info,
               size_t length) {
  if (length == 0 || length > kHkdfBytesMax) throw py::value_error("length not in 1..8160");
  if (view_of(info).size() > kSecretBytesMax - kHashBytes - 1) {
    throw py::value_error("info too large");
  }
  const SecretBuffer secret = hkdf_extract(view_of(salt), view_of(input));
  return to_python(hkdf_expand(secret.view(), view_of(info), length).view());
}

KeyPair key_pair(const py::bytes& private_key) {
  require_size("private key", view_of(private_key).size(), kPrivateKeyBytes);
  return KeyPair::from_private(to_secret(view_of(private_key)));
}

py::bytes x25519_public(const py::bytes& private_key) {
  return to_python(key_pair(private_key).public_key());
}

py::bytes x25519_shared(const py::bytes& private_key, const py::bytes& peer_public) {
  return to_python(unwrap(key_pair(private_key).shared_secret(view_of(peer_public))).view());
}

py::bytes link_secret(const py::bytes& private_key, const py::bytes& peer_public,
                      const py::bytes& own_entry, const py::bytes& peer_entry, bool own_is_low,
                      uint32_t engine, const py::bytes& job_secret, const py::bytes& kem_secret) {
  if (view_of(job_secret).size() + view_of(kem_secret).size() >
      kSecretBytesMax - kSharedSecretBytes) {
    throw py::value_error("job and KEM secret too large");
  }
  return to_python(unwrap(derive_link_secret(key_pair(private_key), view_of(peer_public),
                                             view_of(own_entry), view_of(peer_entry), own_is_low,
                                             engine, view_of(job_secret), view_of(kem_secret)))
                       .view());
}

py::bytes path_secret(const py::bytes& link, uint32_t from, uint32_t to, uint32_t epoch,
                      uint16_t path_id) {
  const SecretBuffer direction =
      derive_direction_secret(view_of(link), base::Rank{from}, base::Rank{to}, epoch);
  return to_python(derive_path_secret(direction.view(), base::PathId{path_id}).view());
}

template <typename Path>
std::unique_ptr<Path> make_path(const std::string& suite, const py::bytes& secret, uint16_t path_id,
                                unsigned generation_bits) {
  const AeadProvider& provider = provider_of(suite);
  require_size("path secret", view_of(secret).size(), kHashBytes);
  if (generation_bits == 0 || generation_bits > provider.generation_bits_max()) {
    throw py::value_error("generation_bits not in 1.." +
                          std::to_string(provider.generation_bits_max()));
  }
  return std::make_unique<Path>(provider, to_secret(view_of(secret)), base::PathId{path_id},
                                generation_bits);
}

py::bytes seal_packet(PathSealer& sealer, const py::bytes& aad,
                      const std::vector<py::bytes>& parts) {
  const std::vector<Bytes> views = views_of(parts);
  bool sealed = false;
  py::bytes packet = make_bytes(sealed_bytes(views), [&](base::MutableBytes out) {
    sealed = sealer.seal(view_of(aad), views, out);
  });
  if (!sealed) {
    raise_core_error({base::ErrorCode::kLimit, "no packet numbers are left on this path"});
  }
  return packet;
}

std::pair<std::string, std::optional<py::bytes>> open_packet(PathOpener& opener, uint64_t number,
                                                             const py::bytes& aad,
                                                             const py::bytes& sealed,
                                                             unsigned epoch) {
  const Bytes bytes = view_of(sealed);
  const size_t size = bytes.size() < kAuthTagBytes ? 0 : bytes.size() - kAuthTagBytes;
  OpenStatus status = OpenStatus::kAuthFailed;
  py::bytes opened = make_bytes(size, [&](base::MutableBytes out) {
    status = opener.open(static_cast<EpochBit>(epoch & 1), number, view_of(aad), bytes, out);
  });
  if (status != OpenStatus::kOk) return {open_status_name(status), std::nullopt};
  return {open_status_name(status), opened};
}

void begin_epoch(PathSealer& sealer, const py::bytes& secret) {
  require_size("path secret", view_of(secret).size(), kHashBytes);
  sealer.begin_epoch(to_secret(view_of(secret)));
}

void install_epoch(PathOpener& opener, unsigned epoch, const py::bytes& secret) {
  require_size("path secret", view_of(secret).size(), kHashBytes);
  opener.install_epoch(static_cast<EpochBit>(epoch & 1), to_secret(view_of(secret)));
}

JobKey parse_job_key(py::bytearray text) {
  return unwrap(JobKey::parse(view_of(text)));
}

py::bytearray format_job_key(const std::string& suite, py::bytearray random) {
  require_size("random", random.size(), JobKey::kKeyBytes);
  const SecretBuffer text = JobKey::format(unwrap(parse_suite(suite)), view_of(random));
  return {reinterpret_cast<const char*>(text.view().data()), text.size()};
}

Bytes store_secret_of(const JobKey& key, const std::string& role) {
  if (role != "server" && role != "client") throw py::value_error("role is server or client");
  return key.store_secret(role == "server" ? StoreRole::kServer : StoreRole::kClient);
}

py::bytearray store_secret(const JobKey& key, const std::string& role) {
  const Bytes secret = store_secret_of(key, role);
  return {reinterpret_cast<const char*>(secret.data()), secret.size()};
}

py::bytes store_public(const JobKey& key, const std::string& role) {
  const KeyPair pair = KeyPair::from_private(to_secret(store_secret_of(key, role)));
  return to_python(pair.public_key());
}

std::string describe(const JobKey& key) {
  return "JobKey(id=" + key.key_id() + ", suite=" + suite_name(key.suite()) + ")";
}

void bind_job_key(py::module_& module) {
  py::class_<JobKey>(module, "JobKey", py::is_final(),
                     "What every member of a job holds; see job_key.h.")
      .def(py::init(&parse_job_key), py::arg("text"),
           "Parse a key file's text, which is wiped. Raises ValueError with the line and the fix.")
      .def_static("format", &format_job_key, py::arg("suite"), py::arg("random"),
                  "Make a key file's text from 32 random bytes, which are wiped.")
      .def_property_readonly("key_id", &JobKey::key_id, "16 hexadecimal digits; public.")
      .def_property_readonly(
          "suite", [](const JobKey& key) { return suite_name(key.suite()); },
          "The name of the job's cipher suite.")
      .def(
          "evidence",
          [](const JobKey& key, const py::bytes& message) {
            return to_python(key.evidence(view_of(message)));
          },
          py::arg("message"), "Prove possession of the job key for a message.")
      .def(
          "verify_evidence",
          [](const JobKey& key, const py::bytes& message, const py::bytes& evidence) {
            return key.verify_evidence(view_of(message), view_of(evidence));
          },
          py::arg("message"), py::arg("evidence"), "Check what evidence() returned, anywhere.")
      .def("store_secret", &store_secret, py::arg("role"),
           "The private CURVE key of the store's \"server\" or \"client\"; the caller wipes it.")
      .def("store_public", &store_public, py::arg("role"),
           "The public key to store_secret(), which leaves no copy of that.")
      .def("__repr__", &describe);
}

void bind_status(py::module_& module) {
  module.def(
      "suites", &suites,
      "Name, provider and reason of refusal of every cipher suite; one of the last two is None.");
  module.def("providers", &providers, py::arg("suite"),
             "Name the implementations of a suite that this CPU can run, the preferred one first.");
  module.def("provider_failures", &provider_failures,
             "Say which implementations failed their self-test and were passed over.");
  module.def("secret_memory_status", &secret_memory_status,
             "Describe the memory that holds secrets and the protections it got.");
  module.def("forked_child", &forked_child,
             "Tell whether this process was forked from one that held secrets.");
}

void bind_primitives(py::module_& module) {
  module.def("aead_seal", &aead_seal, py::arg("suite"), py::arg("key"), py::arg("nonce"),
             py::arg("aad"), py::arg("data"), py::arg("provider") = "",
             "Seal with a given nonce. For published vectors.");
  module.def("aead_open", &aead_open, py::arg("suite"), py::arg("key"), py::arg("nonce"),
             py::arg("aad"), py::arg("sealed"), py::arg("provider") = "",
             "Open; None when the tag does not verify.");
  module.def("exercise", &exercise, py::arg("suite"), py::arg("packet_bytes"), py::arg("packets"),
             py::arg("opens") = false, py::arg("provider") = "",
             "Seal or open packets of zeros, for the caller to time.");
  module.def("hkdf", &hkdf, py::arg("salt"), py::arg("secret"), py::arg("info"), py::arg("length"),
             "HKDF-SHA256, extract and expand.");
  module.def("x25519_public", &x25519_public, py::arg("private_key"), "The public key.");
  module.def("x25519_shared", &x25519_shared, py::arg("private_key"), py::arg("peer_public"),
             "The shared secret. Raises CoreError for keys that must be refused.");
  module.def("link_secret", &link_secret, py::arg("private_key"), py::arg("peer_public"),
             py::arg("own_entry"), py::arg("peer_entry"), py::arg("own_is_low"), py::arg("engine"),
             py::arg("job_secret"), py::arg("kem_secret") = py::bytes(),
             "The first epoch's link secret. PROTOCOL.md section 3.");
  module.def("path_secret", &path_secret, py::arg("link"), py::arg("from_rank"), py::arg("to_rank"),
             py::arg("epoch"), py::arg("path_id"),
             "The secret of one path in one direction. PROTOCOL.md section 3.");
}

void bind_paths(py::module_& module) {
  py::class_<PathSealer>(module, "PathSealer", py::is_final(),
                         "Seals the packets of one path in one direction.")
      .def(py::init(&make_path<PathSealer>), py::arg("suite"), py::arg("path_secret"),
           py::arg("path_id"), py::arg("generation_bits"))
      .def_property_readonly("next_packet_number", &PathSealer::next_packet_number,
                             "What the next seal will use and burn.")
      .def("seal", &seal_packet, py::arg("aad"), py::arg("parts"),
           "Seal the parts, gathered in order, as one packet.")
      .def("begin_epoch", &begin_epoch, py::arg("path_secret"),
           "Seal with keys of the next epoch from here on.");
  py::class_<PathOpener>(module, "PathOpener", py::is_final(),
                         "Opens the packets of one path in one direction.")
      .def(py::init(&make_path<PathOpener>), py::arg("suite"), py::arg("path_secret"),
           py::arg("path_id"), py::arg("generation_bits"))
      .def_property_readonly("auth_failures", &PathOpener::auth_failures, "Failed opens so far.")
      .def("open", &open_packet, py::arg("packet_number"), py::arg("aad"), py::arg("sealed"),
           py::arg("epoch") = 0, "Return the status, and the plaintext when that is 'ok'.")
      .def("install_epoch", &install_epoch, py::arg("epoch"), py::arg("path_secret"),
           "Open packets of this epoch as well; the one before the last is forgotten.");
}

}  // namespace

void bind_crypto(py::module_& module) {
  bind_job_key(module);
  bind_status(module);
  bind_primitives(module);
  bind_paths(module);
}

}  // namespace securefabric::python
