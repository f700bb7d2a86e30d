// One linear pass over the bytes of an HTML page: what a crawler wants of it, and no tree.
//
// Only what decides whether a tag is one is modelled, as the standard has it: the tokenizer whole, and of the tree's
// construction the stack of open elements. What the standard does with formatting elements and tables moves elements
// about, and makes none. Source: https://html.spec.whatwg.org/multipage/parsing.html
//
// No pointer is computed here: every access goes through a string_view, a vector or an array, whose bounds libc++ checks
// (_LIBCPP_HARDENING_MODE), and nothing that the page says is searched for backwards without a limit.
#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "ada.h"
#include "entities.h"  // made by build.py of Python's html.entities: ENTITIES, sorted by name

namespace {

using std::string_view;
using namespace std::string_view_literals;
constexpr size_t NONE = string_view::npos;

constexpr size_t MAX_URL = 2000;  // as crawler.urls has it
constexpr size_t MAX_HOST = 253;
constexpr size_t MAX_STEPS = 512;  // up the stack, for any one tag: deeper nesting than this no browser builds either
constexpr size_t KEPT = 1 << 20;   // bytes of the answer's buffer that are kept for the next page

enum Flags : unsigned { IFRAME = 1, NEXT = 2, OBEY = 4, OTHER_ENCODING = 8 };

constexpr bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r' || c == '\f'; }
constexpr char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }
constexpr bool is_letter(char c) { return lower(c) >= 'a' && lower(c) <= 'z'; }
constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }
constexpr int hex_value(char c) {
  return is_digit(c) ? c - '0' : lower(c) >= 'a' && lower(c) <= 'f' ? lower(c) - 'a' + 10 : -1;
}
constexpr bool ends_tag_name(char c) { return is_space(c) || c == '/' || c == '>'; }

bool same(string_view text, string_view lower_case) {
  return text.size() == lower_case.size() &&
         std::equal(text.begin(), text.end(), lower_case.begin(), [](char a, char b) { return lower(a) == b; });
}

string_view stripped(string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

bool has_word(string_view text, string_view lower_case) {
  for (size_t at = 0; at < text.size(); ++at) {
    size_t end = at;
    while (end < text.size() && !is_space(text[end])) ++end;
    if (same(text.substr(at, end - at), lower_case)) return true;
    at = end;
  }
  return false;
}

// --- names of elements -----------------------------------------------------------------------------------------------

enum class Kind : uint8_t {
  OTHER, A, AREA, BASE, BODY, BR, BUTTON, CAPTION, CELL, COL, COLGROUP, DD, DT, FORM, FRAME, FRAMESET, HEAD, HEADING,
  HR, HTML, IFRAME, INPUT, LI, LINK, MATH, META, NOFRAMES, NOSCRIPT, OPTGROUP, OPTION, P, PLAINTEXT, PRE, RAW, ROW,
  ROWS, SCRIPT, SELECT, SVG, TABLE, TEMPLATE, TEXTAREA, TITLE, XMP, FORMATTING, VOID, BLOCK, OBJECT, ADDRESS, FONT,
  RUBY, IN_HEAD, COUNT
};

enum Traits : uint8_t {
  SPECIAL = 1,       // no other end tag reaches past it
  SCOPE = 2,         // nor does one of those that look within a scope
  BREAKS_OUT = 4,    // of a drawing or a formula
  NO_FRAMESET = 8,   // after it, a page is none of frames
  IS_VOID = 16,
  CLOSES_P = 32,
};

struct Name {
  string_view text;
  Kind kind;
  uint8_t traits;
};

constexpr Name NAMES[] = {
    {"a", Kind::A, 0},
    {"address", Kind::ADDRESS, SPECIAL | CLOSES_P},
    {"applet", Kind::OBJECT, SPECIAL | SCOPE | NO_FRAMESET},
    {"area", Kind::AREA, SPECIAL | IS_VOID | NO_FRAMESET},
    {"article", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"aside", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"b", Kind::FORMATTING, BREAKS_OUT},
    {"base", Kind::BASE, SPECIAL | IS_VOID},
    {"basefont", Kind::IN_HEAD, SPECIAL | IS_VOID},
    {"bgsound", Kind::IN_HEAD, SPECIAL | IS_VOID},
    {"big", Kind::FORMATTING, BREAKS_OUT},
    {"blockquote", Kind::BLOCK, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"body", Kind::BODY, SPECIAL | BREAKS_OUT},
    {"br", Kind::BR, SPECIAL | IS_VOID | BREAKS_OUT | NO_FRAMESET},
    {"button", Kind::BUTTON, SPECIAL | NO_FRAMESET},
    {"caption", Kind::CAPTION, SPECIAL | SCOPE},
    {"center", Kind::BLOCK, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"code", Kind::FORMATTING, BREAKS_OUT},
    {"col", Kind::COL, SPECIAL | IS_VOID},
    {"colgroup", Kind::COLGROUP, SPECIAL},
    {"dd", Kind::DD, SPECIAL | BREAKS_OUT | NO_FRAMESET},
    {"details", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"dialog", Kind::BLOCK, CLOSES_P},
    {"dir", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"div", Kind::BLOCK, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"dl", Kind::BLOCK, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"dt", Kind::DT, SPECIAL | BREAKS_OUT | NO_FRAMESET},
    {"em", Kind::FORMATTING, BREAKS_OUT},
    {"embed", Kind::VOID, SPECIAL | IS_VOID | BREAKS_OUT | NO_FRAMESET},
    {"fieldset", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"figcaption", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"figure", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"font", Kind::FONT, 0},
    {"footer", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"form", Kind::FORM, SPECIAL | CLOSES_P},
    {"frame", Kind::FRAME, SPECIAL | IS_VOID},
    {"frameset", Kind::FRAMESET, SPECIAL},
    {"h1", Kind::HEADING, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"h2", Kind::HEADING, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"h3", Kind::HEADING, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"h4", Kind::HEADING, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"h5", Kind::HEADING, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"h6", Kind::HEADING, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"head", Kind::HEAD, SPECIAL | BREAKS_OUT},
    {"header", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"hgroup", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"hr", Kind::HR, SPECIAL | IS_VOID | CLOSES_P | BREAKS_OUT | NO_FRAMESET},
    {"html", Kind::HTML, SPECIAL | SCOPE},
    {"i", Kind::FORMATTING, BREAKS_OUT},
    {"iframe", Kind::IFRAME, SPECIAL | NO_FRAMESET},
    {"image", Kind::VOID, IS_VOID | NO_FRAMESET},
    {"img", Kind::VOID, SPECIAL | IS_VOID | BREAKS_OUT | NO_FRAMESET},
    {"input", Kind::INPUT, SPECIAL | IS_VOID | NO_FRAMESET},
    {"keygen", Kind::VOID, SPECIAL | IS_VOID | NO_FRAMESET},
    {"li", Kind::LI, SPECIAL | BREAKS_OUT | NO_FRAMESET},
    {"link", Kind::LINK, SPECIAL | IS_VOID},
    {"listing", Kind::PRE, SPECIAL | CLOSES_P | BREAKS_OUT | NO_FRAMESET},
    {"main", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"marquee", Kind::OBJECT, SPECIAL | SCOPE | NO_FRAMESET},
    {"math", Kind::MATH, 0},
    {"menu", Kind::BLOCK, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"meta", Kind::META, SPECIAL | IS_VOID | BREAKS_OUT},
    {"nav", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"nobr", Kind::FORMATTING, BREAKS_OUT},
    {"noembed", Kind::RAW, SPECIAL},
    {"noframes", Kind::NOFRAMES, SPECIAL},
    {"noscript", Kind::NOSCRIPT, SPECIAL},
    {"object", Kind::OBJECT, SPECIAL | SCOPE | NO_FRAMESET},
    {"ol", Kind::BLOCK, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"optgroup", Kind::OPTGROUP, 0},
    {"option", Kind::OPTION, 0},
    {"p", Kind::P, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"param", Kind::VOID, SPECIAL | IS_VOID},
    {"plaintext", Kind::PLAINTEXT, SPECIAL | CLOSES_P},
    {"pre", Kind::PRE, SPECIAL | CLOSES_P | BREAKS_OUT | NO_FRAMESET},
    {"ruby", Kind::RUBY, BREAKS_OUT},
    {"s", Kind::FORMATTING, BREAKS_OUT},
    {"script", Kind::SCRIPT, SPECIAL},
    {"search", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"section", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"select", Kind::SELECT, SPECIAL | SCOPE | NO_FRAMESET},
    {"small", Kind::FORMATTING, BREAKS_OUT},
    {"source", Kind::VOID, SPECIAL | IS_VOID},
    {"span", Kind::OTHER, BREAKS_OUT},
    {"strike", Kind::FORMATTING, BREAKS_OUT},
    {"strong", Kind::FORMATTING, BREAKS_OUT},
    {"style", Kind::RAW, SPECIAL},
    {"sub", Kind::OTHER, BREAKS_OUT},
    {"summary", Kind::BLOCK, SPECIAL | CLOSES_P},
    {"sup", Kind::OTHER, BREAKS_OUT},
    {"svg", Kind::SVG, 0},
    {"table", Kind::TABLE, SPECIAL | SCOPE | CLOSES_P | BREAKS_OUT | NO_FRAMESET},
    {"tbody", Kind::ROWS, SPECIAL},
    {"td", Kind::CELL, SPECIAL | SCOPE},
    {"template", Kind::TEMPLATE, SPECIAL | SCOPE},
    {"textarea", Kind::TEXTAREA, SPECIAL | NO_FRAMESET},
    {"tfoot", Kind::ROWS, SPECIAL},
    {"th", Kind::CELL, SPECIAL | SCOPE},
    {"thead", Kind::ROWS, SPECIAL},
    {"title", Kind::TITLE, SPECIAL},
    {"tr", Kind::ROW, SPECIAL},
    {"track", Kind::VOID, SPECIAL | IS_VOID},
    {"tt", Kind::FORMATTING, BREAKS_OUT},
    {"u", Kind::FORMATTING, BREAKS_OUT},
    {"ul", Kind::BLOCK, SPECIAL | CLOSES_P | BREAKS_OUT},
    {"var", Kind::OTHER, BREAKS_OUT},
    {"wbr", Kind::VOID, SPECIAL | IS_VOID | NO_FRAMESET},
    {"xmp", Kind::XMP, SPECIAL | CLOSES_P | NO_FRAMESET},
};
constexpr Name UNKNOWN = {"", Kind::OTHER, 0};

constexpr uint32_t hashed(string_view name) {  // two names of one hash are one to us; a page gains nothing by it
  uint32_t hash = 2166136261u;
  for (char c : name) hash = (hash ^ static_cast<uint8_t>(lower(c))) * 16777619u;
  return hash;
}

constexpr size_t SLOTS = 1024;
constexpr std::array<uint8_t, SLOTS> placed() {  // open addressing; 0 is an empty slot
  std::array<uint8_t, SLOTS> slots{};
  for (size_t number = 0; number < std::size(NAMES); ++number) {
    size_t slot = hashed(NAMES[number].text) % SLOTS;
    while (slots[slot]) slot = (slot + 1) % SLOTS;
    slots[slot] = static_cast<uint8_t>(number + 1);
  }
  return slots;
}
constexpr auto PLACED = placed();
static_assert(std::size(NAMES) < 255);

const Name& named(string_view text, uint32_t hash) {
  for (size_t slot = hash % SLOTS; PLACED[slot]; slot = (slot + 1) % SLOTS)
    if (const Name& name = NAMES[PLACED[slot] - 1u]; same(text, name.text)) return name;
  return UNKNOWN;
}

// --- character references --------------------------------------------------------------------------------------------

void put(std::string& into, uint32_t c) {
  if (c < 0x80) {
    into += static_cast<char>(c);
  } else if (c < 0x800) {
    into += static_cast<char>(0xC0 | (c >> 6));
    into += static_cast<char>(0x80 | (c & 63));
  } else if (c < 0x10000) {
    into += static_cast<char>(0xE0 | (c >> 12));
    into += static_cast<char>(0x80 | ((c >> 6) & 63));
    into += static_cast<char>(0x80 | (c & 63));
  } else {
    into += static_cast<char>(0xF0 | (c >> 18));
    into += static_cast<char>(0x80 | ((c >> 12) & 63));
    into += static_cast<char>(0x80 | ((c >> 6) & 63));
    into += static_cast<char>(0x80 | (c & 63));
  }
}

constexpr std::array<uint16_t, 32> WINDOWS_1252 = {
    0x20AC, 0x81,   0x201A, 0x0192, 0x201E, 0x2026, 0x2020, 0x2021, 0x02C6, 0x2030, 0x0160, 0x2039, 0x0152, 0x8D,
    0x017D, 0x8F,   0x90,   0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013, 0x2014, 0x02DC, 0x2122, 0x0161, 0x203A,
    0x0153, 0x9D,   0x017E, 0x0178};

// Characters of `text`, which follows "&#", that belong to the reference; 0: it is none. What it means goes to `into`.
size_t numeric(string_view text, std::string& into) {
  bool is_hex = !text.empty() && lower(text[0]) == 'x';
  size_t at = is_hex ? 1 : 0, first = at;
  uint32_t number = 0;
  for (; at < text.size() && (is_hex ? hex_value(text[at]) >= 0 : is_digit(text[at])); ++at)
    number = std::min<uint32_t>(number * (is_hex ? 16 : 10) + static_cast<uint32_t>(hex_value(text[at])), 0x110000);
  if (at == first) return 0;
  if (number >= 0x80 && number < 0xA0) number = WINDOWS_1252[number - 0x80];
  if (number == 0 || number > 0x10FFFF || (number >= 0xD800 && number < 0xE000)) number = 0xFFFD;
  put(into, number);
  return at < text.size() && text[at] == ';' ? at + 1 : at;
}

// As `numeric`, for what follows "&".
size_t by_name(string_view text, bool in_attribute, std::string& into) {
  size_t end = 0;
  while (end < text.size() && end < MAX_ENTITY && (is_letter(text[end]) || is_digit(text[end]))) ++end;
  if (end < text.size() && end < MAX_ENTITY && text[end] == ';') ++end;
  for (; end >= 2; --end) {
    string_view name = text.substr(0, end);
    auto found = std::lower_bound(std::begin(ENTITIES), std::end(ENTITIES), name,
                                  [](const Entity& entity, string_view wanted) { return entity.name < wanted; });
    if (found == std::end(ENTITIES) || found->name != name) continue;
    if (in_attribute && name.back() != ';' && end < text.size() &&
        (text[end] == '=' || is_letter(text[end]) || is_digit(text[end])))
      return 0;
    into += found->text;
    return end;
  }
  return 0;
}

// `text` with its references resolved and NUL replaced: a part of the page, or of `buffer`, which is overwritten.
string_view decoded(string_view text, std::string& buffer, bool in_attribute = true) {
  if (text.find('&') == NONE && text.find('\0') == NONE) return text;
  buffer.clear();
  for (size_t at = 0; at < text.size();) {
    char c = text[at++];
    if (c == '\0') {
      buffer += "\uFFFD"sv;
    } else if (c != '&' || at == text.size()) {
      buffer += c;
    } else {
      bool is_number = text[at] == '#';
      size_t used = is_number ? numeric(text.substr(at + 1), buffer) : by_name(text.substr(at), in_attribute, buffer);
      if (used) at += used + (is_number ? 1 : 0);
      else buffer += c;
    }
  }
  return buffer;
}

// Bytes of the character that `text` begins with; negative: so many that are none, and count as one U+FFFD.
// Source: https://encoding.spec.whatwg.org/#utf-8-decoder
int utf_8(string_view text) {
  auto byte = [&](size_t at) { return at < text.size() ? static_cast<uint8_t>(text[at]) : 0u; };
  unsigned first = byte(0);
  if (first < 0x80) return 1;
  int more = first >= 0xC2 && first < 0xE0 ? 1 : first >= 0xE0 && first < 0xF0 ? 2 : first >= 0xF0 && first < 0xF5 ? 3 : 0;
  if (!more) return -1;
  unsigned least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  unsigned most = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  for (int number = 1; number <= more; ++number) {
    unsigned next = byte(static_cast<size_t>(number));
    if (next < least || next > most) return -number;
    least = 0x80, most = 0xBF;
  }
  return more + 1;
}

bool is_ascii(string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

// `text` with U+FFFD for what is not UTF-8; a part of `buffer` if there is any.
string_view valid(string_view text, std::string& buffer) {
  if (is_ascii(text)) return text;
  std::string made;
  for (size_t at = 0; at < text.size();) {
    int bytes = utf_8(text.substr(at));
    if (bytes > 0) made += text.substr(at, static_cast<size_t>(bytes));
    else made += "\uFFFD"sv;
    at += static_cast<size_t>(bytes > 0 ? bytes : -bytes);
  }
  buffer = std::move(made);
  return buffer;
}

// --- addresses -------------------------------------------------------------------------------------------------------

constexpr std::array<bool, 256> uneven() {
  std::array<bool, 256> found{};
  for (char c : "%|[]^`{}\\"sv) found[static_cast<uint8_t>(c)] = true;
  return found;
}
constexpr auto UNEVEN = uneven();

// crawler.urls.normalise: `into` becomes the spelling; false where that raises InvalidURLError.
bool normalised(string_view href, const ada::url_aggregator* base, std::string& into) {
  auto parsed = ada::parse<ada::url_aggregator>(href, base);
  if (!parsed) return false;
  string_view address = parsed->get_href();
  address = address.substr(0, address.find('#'));
  if (!(address.starts_with("http://") || address.starts_with("https://")) || address.size() > 3 * MAX_URL) return false;
  size_t path = address.find('/', 8);
  if (path == NONE) return false;
  string_view origin = address.substr(0, path);
  if (origin.find('@') != NONE) return false;
  into.assign(origin);
  size_t dropped = 0;
  if (origin.back() == '.' || origin.find(".:") != NONE) {
    size_t begin = origin.find("//") + 2;
    string_view host = origin.substr(begin), name = host.substr(0, host.find(':')), port = host.substr(name.size());
    if (!name.empty() && name.back() == '.') name.remove_suffix(1);
    if (name.empty() || name.back() == '.') return false;
    into.assign(origin.substr(0, begin));
    into += name;
    into += port;
    dropped = origin.size() - into.size();
  }
  string_view rest = into;
  rest = rest.substr(rest.find("//") + 2);
  if (path > MAX_HOST && rest.substr(0, rest.find(':')).size() > MAX_HOST) return false;
  constexpr string_view HEX = "0123456789ABCDEF";
  size_t copied = path;
  for (size_t at = path; at < address.size(); ++at) {
    auto c = static_cast<uint8_t>(address[at]);
    if (!UNEVEN[c]) continue;
    into += address.substr(copied, at - copied);
    int high = -1, low = -1;
    if (c == '%' && at + 2 < address.size()) high = hex_value(address[at + 1]), low = hex_value(address[at + 2]);
    if (high >= 0 && low >= 0) {
      c = static_cast<uint8_t>(high * 16 + low);
      at += 2;
    }
    char plain = static_cast<char>(c);
    if (is_letter(plain) || is_digit(plain) || plain == '-' || plain == '.' || plain == '_' || plain == '~') {
      into += plain;
    } else {
      into += '%';
      into += HEX[c >> 4];
      into += HEX[c & 15];
    }
    copied = at + 1;
  }
  into += address.substr(copied);
  return into.size() + dropped <= MAX_URL;
}

// SipHash-1-3, keyed for each process: no page can know which addresses collide.
class KeyedHash {
 public:
  static inline uint64_t key[2] = {0, 0};

  size_t operator()(string_view text) const {
    std::array<uint64_t, 4> v = {key[0] ^ 0x736f6d6570736575u, key[1] ^ 0x646f72616e646f6du,
                                 key[0] ^ 0x6c7967656e657261u, key[1] ^ 0x7465646279746573u};
    uint64_t length = static_cast<uint64_t>(text.size()) << 56;
    for (; text.size() >= 8; text.remove_prefix(8)) {
      uint64_t word = 0;
      std::memcpy(&word, text.data(), 8);
      mix(v, word);
    }
    uint64_t word = 0;
    if (!text.empty()) std::memcpy(&word, text.data(), text.size());
    mix(v, word | length);
    v[2] ^= 0xff;
    for (int round = 0; round < 3; ++round) turn(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
  }

 private:
  static uint64_t rotated(uint64_t x, int by) { return (x << by) | (x >> (64 - by)); }
  static void mix(std::array<uint64_t, 4>& v, uint64_t word) {
    v[3] ^= word;
    turn(v);
    v[0] ^= word;
  }
  static void turn(std::array<uint64_t, 4>& v) {
    v[0] += v[1], v[1] = rotated(v[1], 13) ^ v[0], v[0] = rotated(v[0], 32);
    v[2] += v[3], v[3] = rotated(v[3], 16) ^ v[2];
    v[0] += v[3], v[3] = rotated(v[3], 21) ^ v[0];
    v[2] += v[1], v[1] = rotated(v[1], 17) ^ v[2], v[2] = rotated(v[2], 32);
  }
};

// --- links that are met again and again ------------------------------------------------------------------------------

struct Link {
  string_view written;
  uint64_t hash;  // of `written`
};

// Which links a page has, by how they are written.
class Written {
 public:
  // Adds `text` to `links`, which are those of the last call, unless it is there.
  void add(string_view text, std::vector<Link>& links) {
    if (slots_.size() < 2 * (links.size() + 1)) place(links);
    uint64_t hash = KeyedHash()(text);
    size_t slot = hash & (slots_.size() - 1);
    for (; slots_[slot]; slot = (slot + 1) & (slots_.size() - 1))
      if (const Link& link = links[slots_[slot] - 1]; link.hash == hash && link.written == text) return;
    links.push_back({text, hash});
    slots_[slot] = static_cast<uint32_t>(links.size());
  }

  // Begins anew with `links`.
  void place(const std::vector<Link>& links) {
    slots_.assign(std::max<size_t>(256, 8 * std::bit_ceil(links.size())), 0);
    for (size_t number = 0; number < links.size(); ++number) {
      size_t slot = links[number].hash & (slots_.size() - 1);
      while (slots_[slot]) slot = (slot + 1) & (slots_.size() - 1);
      slots_[slot] = static_cast<uint32_t>(number + 1);
    }
  }

 private:
  std::vector<uint32_t> slots_;  // each 0, or the number of a link, from 1 on; a power of two of them
};

// A link on the pages of a batch, by the batch, how the link is written, and what that is relative to.
struct Noted {
  uint64_t key;    // 0: there is none
  uint32_t depth;  // of the link, from a seed
  uint32_t size;   // bytes of its spelling
};

// Links that batches of this process have noted, in 2 MB: forgetting one costs another look at it.
class Met {
 public:
  // The size of a link that was noted from so near to a seed, or nearer; NONE: it has to be looked at.
  size_t size(uint64_t key, uint32_t depth) const {
    if (!sets_.empty())
      for (const Noted& noted : sets_[key % SETS].ways)
        if (noted.key == key) return noted.depth <= depth ? noted.size : NONE;
    return NONE;
  }

  void add(const Noted& added) {
    if (sets_.empty()) sets_.resize(SETS);
    auto& ways = sets_[added.key % SETS].ways;
    for (Noted& noted : ways)
      if (noted.key == added.key || !noted.key) return void(noted = added);
    ways[displaced_++ % ways.size()] = added;
  }

 private:
  static constexpr size_t SETS = 1 << 15;

  struct alignas(64) Set {  // what a processor reads of its memory at once
    std::array<Noted, 4> ways;
  };

  std::vector<Set> sets_;
  size_t displaced_ = 0;
};

thread_local Met met;

// What the addresses of one page's links may be relative to, each a hash under which links of a batch are noted.
class Context {
 public:
  // `other`: links beyond ASCII have another meaning than on pages in UTF-8.
  Context(uint64_t batch, bool other, string_view base) {
    size_t path = std::min(base.find('/', 8), base.size()), query = std::min(base.find('?', path), base.size());
    auto hash = [&](char kind, size_t size) {
      std::string text(1, kind);
      text += other ? '-' : ' ';
      text += std::to_string(batch);
      text += ' ';
      text += base.substr(0, size);
      return KeyedHash()(text);
    };
    nothing_ = hash('n', 0);
    origin_ = hash('o', path);
    folder_ = hash('f', base.rfind('/', query) + 1);
    all_ = hash('a', base.size());
  }

  uint64_t key(const Link& link) const { return of(link.written) ^ link.hash; }

 private:
  uint64_t of(string_view written) const {
    if (written.front() == '/') return origin_;
    if (written.starts_with("https://") || written.starts_with("http://")) return nothing_;
    for (char c : written) {
      if (c == '/' || c == '?') return c == written.front() ? all_ : folder_;
      if (!(is_letter(c) || is_digit(c) || c == '.' || c == '-' || c == '_')) return all_;  // perhaps of a scheme
    }
    return folder_;
  }

  uint64_t nothing_, origin_, folder_, all_;
};

// --- the page --------------------------------------------------------------------------------------------------------

struct Attribute {
  string_view value;
  bool given = false;
};

struct Attributes {
  Attribute href, src, rel, name, content, http_equiv, encoding, type;
  bool of_font = false;  // one of those by which <font> breaks out of a drawing
};

enum class Space : uint8_t { HTML, SVG, MATH };

struct Open {  // an element that is open
  uint32_t hash;
  Kind kind;
  uint8_t traits;
  Space space;
  bool takes_html;  // a drawing's or formula's element in which HTML is HTML again
  bool takes_text;  // a formula's, in which text is HTML
};

struct Meta {
  char is;  // 'r': said to robots; 'f': a refresh
  string_view content;
};

class Page {
 public:
  Page(string_view page, string_view agent, unsigned flags) : page_(page), agent_(agent), flags_(flags) {}

  void read();
  void answer(string_view url, size_t most, uint64_t batch, uint32_t depth, std::string& out, std::vector<Noted>& noted);

 private:
  enum class Phase : uint8_t { START, HEAD, NOSCRIPT_IN_HEAD, AFTER_HEAD, BODY, FRAMESET, AFTER_FRAMESET };

  struct Found {
    string_view title, base, canonical;
    bool has_title = false, has_base = false, has_canonical = false;
  };

  struct Tag {
    string_view text;
    uint32_t hash = 0;
    Name name = UNKNOWN;
    bool closes_itself = false;
    Attributes has;
  };

  char peek(size_t at) const { return at < page_.size() ? page_[at] : '\0'; }
  bool starts(size_t at, string_view text) const { return at < page_.size() && page_.substr(at, text.size()) == text; }
  void go(size_t at) { at_ = std::min(at, page_.size()); }

  bool attributes(Attributes* into, bool& closes_itself);
  static void keep(Attributes& into, string_view name, string_view value);
  void markup();
  void comment(size_t at);
  void text(string_view text);
  string_view raw(string_view name);
  void script();

  void start(Tag& tag);
  bool start_before_body(Tag& tag);
  bool start_in_table(Tag& tag);
  void start_in_body(Tag& tag);
  void start_in_head(Tag& tag);
  void start_foreign(Tag& tag);
  void end(const Tag& tag);
  void end_in_body(const Tag& tag);
  bool end_in_table(const Tag& tag);
  bool end_foreign(const Tag& tag);
  void found(Tag& tag);
  void follow(const Attribute& href, const Attribute& rel);

  bool is_foreign() const { return !open_.empty() && open_.back().space != Space::HTML; }
  uint32_t count(Kind kind) const { return counts_[static_cast<size_t>(kind)]; }
  void push(const Tag& tag, Space space = Space::HTML);
  void pop();
  void pop_to(size_t size) { while (open_.size() > size) pop(); }
  void remove(size_t at);
  void leave_foreign();
  size_t in_scope(Kind kind, uint32_t hash, bool in_button, bool in_list) const;
  bool close(Kind kind, uint32_t hash = 0, bool in_button = false, bool in_list = false);
  void end_formatting(Kind kind, uint32_t hash);
  Kind table_part() const { return parts_.empty() ? Kind::BODY : open_[parts_.back()].kind; }
  void clear_to_part() { pop_to(parts_.empty() ? 0 : parts_.back() + 1); }
  void pop_part() { if (!parts_.empty()) pop_to(parts_.back()); }
  bool has_part(Kind kind, uint32_t hash = 0) const;
  void body_begins();
  void frameset_begins(const Tag& tag);

  string_view page_, agent_;
  unsigned flags_;
  size_t at_ = 0;
  Phase phase_ = Phase::START;
  bool may_have_frames_ = true;
  std::vector<Open> open_;
  std::vector<size_t> parts_;  // where in open_ the tables' parts and templates are, which decide what a tag means
  std::array<uint32_t, static_cast<size_t>(Kind::COUNT)> counts_{};
  Found found_, before_body_;
  size_t links_before_body_ = 0, metas_before_body_ = 0;
  std::vector<Link> links_;
  std::vector<Meta> metas_;
  Written written_;
};

void Page::read() {
  while (at_ < page_.size()) {
    size_t tag = std::min(page_.find('<', at_), page_.size());
    if (may_have_frames_) text(page_.substr(at_, tag - at_));
    at_ = tag;
    if (at_ < page_.size()) markup();
  }
}

// Text between tags: only whether there is any matters, and only until a page is known to be none of frames.
void Page::text(string_view text) {
  if (std::all_of(text.begin(), text.end(), [](char c) { return is_space(c) || c == '\0'; })) return;
  if (phase_ == Phase::FRAMESET || phase_ == Phase::AFTER_FRAMESET) return;
  if (phase_ == Phase::NOSCRIPT_IN_HEAD) pop_to(0);
  if (count(Kind::TEMPLATE) && phase_ != Phase::BODY) return;
  if (phase_ != Phase::BODY) body_begins();
  may_have_frames_ = false;
}

// --- the tokenizer ---

void Page::markup() {  // at "<"
  bool is_end = peek(at_ + 1) == '/';
  size_t begin = at_ + (is_end ? 2 : 1);
  char c = peek(begin);
  if (begin >= page_.size()) {
    go(page_.size());
  } else if (is_letter(c)) {
    size_t after = begin;
    while (after < page_.size() && !ends_tag_name(page_[after])) ++after;
    Tag tag;
    tag.text = page_.substr(begin, after - begin);
    tag.hash = hashed(tag.text);
    tag.name = named(tag.text, tag.hash);
    go(after);
    if (!attributes(is_end ? nullptr : &tag.has, tag.closes_itself)) return;  // the page ends within the tag
    if (is_end) end(tag);
    else start(tag);
  } else if (is_end) {
    size_t close = page_.find('>', begin);
    go(close == NONE ? close : close + 1);
  } else if (c == '!') {
    if (starts(begin, "!--")) {
      comment(begin + 3);
    } else {
      bool is_data = starts(begin, "![CDATA[") && is_foreign();
      size_t close = page_.find(is_data ? "]]>"sv : ">"sv, begin + (is_data ? 8 : 1));
      if (is_data && may_have_frames_) text(page_.substr(begin + 8, close == NONE ? close : close - begin - 8));
      go(close == NONE ? close : close + (is_data ? 3 : 1));
    }
  } else if (c == '?') {
    size_t close = page_.find('>', begin);
    go(close == NONE ? close : close + 1);
  } else {
    if (may_have_frames_) text("<");
    go(begin);
  }
}

void Page::comment(size_t at) {  // after "<!--"
  if (peek(at) == '>') return go(at + 1);
  if (starts(at, "->")) return go(at + 2);
  for (at = page_.find("--", at); at != NONE; at = page_.find("--", at + 1)) {
    if (peek(at + 2) == '>') return go(at + 3);
    if (starts(at + 2, "!>")) return go(at + 4);
  }
  go(page_.size());
}

void Page::keep(Attributes& into, string_view name, string_view value) {
  auto take = [&](Attribute& attribute, string_view wanted) {
    if (!same(name, wanted)) return false;
    if (!attribute.given) attribute = {value, true};
    return true;
  };
  switch (name.size()) {
    case 3: take(into.rel, "rel") || take(into.src, "src"); break;
    case 4:
      if (!(take(into.href, "href") || take(into.name, "name") || take(into.type, "type")))
        into.of_font |= same(name, "face") || same(name, "size");
      break;
    case 5: into.of_font |= same(name, "color"); break;
    case 7: take(into.content, "content"); break;
    case 8: take(into.encoding, "encoding"); break;
    case 10: take(into.http_equiv, "http-equiv"); break;
    default: break;
  }
}

// From after a tag's name to after its ">". False: the page ends before, and the tag is none.
bool Page::attributes(Attributes* into, bool& closes_itself) {
  closes_itself = false;
  size_t at = at_, size = page_.size();
  while (true) {
    while (at < size && is_space(page_[at])) ++at;
    if (at >= size) break;
    if (page_[at] == '>') return go(at + 1), true;
    if (page_[at] == '/') {
      if (peek(at + 1) == '>') return closes_itself = true, go(at + 2), true;
      ++at;
      continue;
    }
    size_t begin = at++;  // a "=" in the first place belongs to the name
    while (at < size && !ends_tag_name(page_[at]) && page_[at] != '=') ++at;
    string_view name = page_.substr(begin, at - begin), value;
    size_t next = at;
    while (next < size && is_space(page_[next])) ++next;
    if (peek(next) == '=') {
      at = next + 1;
      while (at < size && is_space(page_[at])) ++at;
      if (at >= size) break;
      char quote = page_[at];
      if (quote == '"' || quote == '\'') {
        size_t close = page_.find(quote, at + 1);
        if (close == NONE) break;
        value = page_.substr(at + 1, close - at - 1);
        at = close + 1;
      } else {
        size_t first = at;
        while (at < size && !is_space(page_[at]) && page_[at] != '>') ++at;
        value = page_.substr(first, at - first);
      }
    }
    if (into) keep(*into, name, value);
  }
  return go(size), false;
}

// What follows, to the end tag of that name or the page's end; reads the end tag as well.
string_view Page::raw(string_view name) {
  size_t begin = at_;
  for (size_t at = page_.find("</", at_); at != NONE; at = page_.find("</", at + 2)) {
    size_t after = at + 2 + name.size();
    if (after < page_.size() && ends_tag_name(page_[after]) && same(page_.substr(at + 2, name.size()), name)) {
      go(after);
      bool ignored = false;
      attributes(nullptr, ignored);
      return page_.substr(begin, at - begin);
    }
  }
  go(page_.size());
  return page_.substr(begin);
}

// To after </script>, which does not end it within a comment after another <script>.
void Page::script() {
  auto is_script = [&](size_t at) {
    return at + 6 < page_.size() && ends_tag_name(page_[at + 6]) && same(page_.substr(at, 6), "script");
  };
  bool escaped = false, twice = false;
  for (size_t at = at_; at < page_.size();) {
    if (!escaped) {
      at = page_.find('<', at);
      if (at == NONE) break;
    }
    if (page_[at] == '<') {
      bool is_end = peek(at + 1) == '/';
      if (!escaped && starts(at, "<!--")) {
        escaped = true;
        at += 2;
        continue;
      }
      if (is_script(at + (is_end ? 2 : 1))) {
        if (is_end && !twice) {
          go(at + 8);
          bool ignored = false;
          attributes(nullptr, ignored);
          return;
        }
        if (escaped) twice = !is_end;
      }
      ++at;
    } else if (starts(at, "-->")) {
      escaped = twice = false;
      at += 3;
    } else {
      ++at;
    }
  }
  go(page_.size());
}

// --- the stack of open elements ---

void Page::push(const Tag& tag, Space space) {
  bool html = space == Space::HTML;
  bool takes_text = space == Space::MATH && (same(tag.text, "mi") || same(tag.text, "mo") || same(tag.text, "mn") ||
                                              same(tag.text, "ms") || same(tag.text, "mtext"));
  bool takes_html = space == Space::SVG && (same(tag.text, "foreignobject") || same(tag.text, "desc") || same(tag.text, "title"));
  bool is_annotation = space == Space::MATH && same(tag.text, "annotation-xml");
  if (is_annotation) {
    std::string buffer;
    string_view encoding = decoded(tag.has.encoding.value, buffer);
    takes_html = same(encoding, "text/html") || same(encoding, "application/xhtml+xml");
  }
  bool is_root = tag.name.kind == (space == Space::SVG ? Kind::SVG : Kind::MATH);
  Kind kind = html || is_root ? tag.name.kind : Kind::OTHER;
  uint8_t traits = html ? tag.name.traits : takes_text || takes_html || is_annotation ? SPECIAL | SCOPE : 0;
  open_.push_back({tag.hash, kind, traits, space, takes_html, takes_text});
  ++counts_[static_cast<size_t>(kind)];
  if (!html) return;
  switch (kind) {
    case Kind::TABLE: case Kind::CAPTION: case Kind::COLGROUP: case Kind::ROWS: case Kind::ROW: case Kind::CELL:
    case Kind::TEMPLATE:
      parts_.push_back(open_.size() - 1);
      break;
    default: break;
  }
}

void Page::pop() {
  --counts_[static_cast<size_t>(open_.back().kind)];
  open_.pop_back();
  if (!parts_.empty() && parts_.back() >= open_.size()) parts_.pop_back();
}

// Out of a drawing or formula, to where HTML is HTML.
void Page::leave_foreign() {
  while (is_foreign() && !open_.back().takes_html && !open_.back().takes_text) pop();
}

// Where in the stack such an element is; NONE: in no place that an end tag here could reach. `hash` 0: of any name.
size_t Page::in_scope(Kind kind, uint32_t hash, bool in_button, bool in_list) const {
  if (!count(kind)) return NONE;
  size_t steps = 0;
  for (size_t at = open_.size(); at-- > 0 && steps++ < MAX_STEPS;) {
    const Open& element = open_[at];
    if (element.kind == kind && element.space == Space::HTML && (!hash || element.hash == hash)) return at;
    if (element.traits & SCOPE || (in_button && element.kind == Kind::BUTTON)) return NONE;
    if (in_list && element.kind == Kind::BLOCK && (element.hash == hashed("ol") || element.hash == hashed("ul"))) return NONE;
  }
  return NONE;
}

bool Page::close(Kind kind, uint32_t hash, bool in_button, bool in_list) {
  size_t at = in_scope(kind, hash, in_button, in_list);
  if (at == NONE) return false;
  pop_to(at);
  return true;
}

// Takes one element out of the stack, and leaves those in it open.
void Page::remove(size_t at) {
  --counts_[static_cast<size_t>(open_[at].kind)];
  open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(at));
  for (size_t& part : parts_) part -= part > at;
}

// What the adoption agency leaves on the stack: of the element's contents the blocks, and around these the formatting.
// Source: https://html.spec.whatwg.org/#adoption-agency-algorithm
void Page::end_formatting(Kind kind, uint32_t hash) {
  size_t at = in_scope(kind, hash, false, false);
  if (at == NONE) return;
  size_t end = open_.size();
  while (end > at && !(open_[end - 1].traits & SPECIAL)) --end;
  pop_to(std::max(end, at));
  for (size_t inner = open_.size(); inner-- > at;) {
    const Open& element = open_[inner];
    bool is_formatting = element.kind == Kind::A || element.kind == Kind::FONT || element.kind == Kind::FORMATTING;
    if (inner == at || !(element.traits & SPECIAL || is_formatting)) remove(inner);
  }
}

bool Page::has_part(Kind kind, uint32_t hash) const {
  size_t steps = 0;
  for (size_t at = parts_.size(); at-- > 0 && steps++ < MAX_STEPS;) {
    const Open& part = open_[parts_[at]];
    if (part.kind == kind && (!hash || part.hash == hash)) return true;
    if (part.kind == Kind::TABLE || part.kind == Kind::TEMPLATE) return false;
  }
  return false;
}

void Page::body_begins() {
  phase_ = Phase::BODY;
  before_body_ = found_;
  links_before_body_ = links_.size();
  metas_before_body_ = metas_.size();
}

// A frameset takes the place of the body, with all that was in it.
void Page::frameset_begins(const Tag& tag) {
  if (phase_ == Phase::BODY) {
    found_ = before_body_;
    links_.resize(links_before_body_);
    metas_.resize(metas_before_body_);
    written_.place(links_);
    pop_to(0);
  }
  phase_ = Phase::FRAMESET;
  push(tag);
}

// --- tags ---

void Page::start(Tag& tag) {
  Kind kind = tag.name.kind;
  if (is_foreign()) {
    const Open& current = open_.back();
    bool is_html = current.takes_html || (current.takes_text && !same(tag.text, "mglyph") && !same(tag.text, "malignmark")) ||
                   (current.space == Space::MATH && kind == Kind::SVG && current.hash == hashed("annotation-xml"));
    if (!is_html && (tag.name.traits & BREAKS_OUT || (kind == Kind::FONT && tag.has.of_font))) leave_foreign();
    else if (!is_html) return start_foreign(tag);
  }
  if (phase_ != Phase::BODY && !count(Kind::TEMPLATE) && start_before_body(tag)) return;
  if (!start_in_table(tag)) start_in_body(tag);
}

void Page::start_foreign(Tag& tag) {
  found(tag);
  if (!tag.closes_itself) push(tag, open_.back().space);
}

// Whether that was all; else the tag is the body's.
bool Page::start_before_body(Tag& tag) {
  Kind kind = tag.name.kind;
  bool is_metadata = kind == Kind::BASE || kind == Kind::LINK || kind == Kind::META || kind == Kind::TITLE || kind == Kind::IN_HEAD ||
                     kind == Kind::NOFRAMES || kind == Kind::SCRIPT || kind == Kind::TEMPLATE || same(tag.text, "style");
  if (kind == Kind::HTML) return true;
  if (phase_ == Phase::FRAMESET || phase_ == Phase::AFTER_FRAMESET) {
    if (kind == Kind::NOFRAMES) raw("noframes");
    else if (phase_ == Phase::FRAMESET && kind == Kind::FRAME) found(tag);
    else if (phase_ == Phase::FRAMESET && kind == Kind::FRAMESET) push(tag);
    return true;
  }
  if (phase_ == Phase::START) {
    phase_ = Phase::HEAD;
    if (kind == Kind::HEAD) return true;
  }
  if (phase_ == Phase::NOSCRIPT_IN_HEAD) {
    if (kind == Kind::HEAD || kind == Kind::NOSCRIPT) return true;
    if (is_metadata && kind != Kind::BASE && kind != Kind::TITLE && kind != Kind::SCRIPT && kind != Kind::TEMPLATE)
      return start_in_head(tag), true;
    pop_to(0);
    phase_ = Phase::HEAD;
  }
  if (is_metadata) return start_in_head(tag), true;
  if (kind == Kind::HEAD) return true;
  if (phase_ == Phase::HEAD && kind == Kind::NOSCRIPT) {
    push(tag);
    phase_ = Phase::NOSCRIPT_IN_HEAD;
    return true;
  }
  if (kind == Kind::FRAMESET) return frameset_begins(tag), true;
  body_begins();
  if (kind != Kind::BODY) return false;
  may_have_frames_ = false;
  return true;
}

void Page::start_in_head(Tag& tag) {
  switch (tag.name.kind) {
    case Kind::SCRIPT: script(); break;
    case Kind::TITLE: found(tag); break;
    case Kind::RAW: raw(tag.name.text); break;
    case Kind::NOFRAMES: raw("noframes"); break;
    case Kind::TEMPLATE:
      may_have_frames_ = false;
      push(tag);
      break;
    default: found(tag);
  }
}

// What a table makes of a tag: closes and opens parts of itself. Whether that was all; else the tag is its contents'.
bool Page::start_in_table(Tag& tag) {
  Kind kind = tag.name.kind;
  bool is_part = kind == Kind::CAPTION || kind == Kind::COL || kind == Kind::COLGROUP || kind == Kind::ROWS || kind == Kind::ROW || kind == Kind::CELL;
  while (!parts_.empty()) {
    Kind part = table_part();
    if (part == Kind::TEMPLATE) {
      if (is_part && kind != Kind::COL && open_.back().kind == Kind::TEMPLATE) push(tag);
      return is_part;
    }
    if (part == Kind::COLGROUP) {
      if (kind == Kind::COL) return true;
      if (kind == Kind::TEMPLATE) return false;
      if (open_.back().kind != Kind::COLGROUP) return true;
      pop_part();
      continue;
    }
    if (part == Kind::CELL || part == Kind::CAPTION) {
      if (!is_part) return false;
      pop_part();
      continue;
    }
    if (kind == Kind::TABLE) {
      if (part != Kind::TABLE && !has_part(Kind::TABLE)) return true;
      pop_part();
      continue;
    }
    if (!is_part) return kind == Kind::FORM;  // which within a table has no contents
    if (part == Kind::ROW) {
      if (kind == Kind::CELL) {
        clear_to_part();
        push(tag);
        return true;
      }
      pop_part();
      continue;
    }
    clear_to_part();
    Tag implied;
    if (part == Kind::ROWS) {
      if (kind == Kind::ROW) {
        push(tag);
        return true;
      }
      if (kind != Kind::CELL) {
        pop_part();
        continue;
      }
      implied.text = "tr";
    } else {
      if (kind == Kind::CAPTION || kind == Kind::COLGROUP || kind == Kind::ROWS) {
        push(tag);
        return true;
      }
      implied.text = kind == Kind::COL ? "colgroup"sv : "tbody"sv;
    }
    implied.hash = hashed(implied.text);
    implied.name = named(implied.text, implied.hash);
    push(implied);
  }
  return is_part;  // out of place
}

void Page::start_in_body(Tag& tag) {
  Kind kind = tag.name.kind;
  uint8_t traits = tag.name.traits;
  if (kind == Kind::HTML || kind == Kind::BODY || kind == Kind::HEAD || kind == Kind::FRAME) {
    may_have_frames_ &= kind != Kind::BODY;
    return;
  }
  if (kind == Kind::FRAMESET) {
    if (may_have_frames_ && !count(Kind::TEMPLATE)) frameset_begins(tag);
    return;
  }
  if (kind == Kind::INPUT) {
    if (!same(tag.has.type.value, "hidden")) may_have_frames_ = false;
    close(Kind::SELECT);
    return;
  }
  if (traits & NO_FRAMESET) may_have_frames_ = false;
  if (kind == Kind::LI || kind == Kind::DD || kind == Kind::DT) {
    size_t steps = 0;
    for (size_t at = open_.size(); at-- > 0 && steps++ < MAX_STEPS;) {
      const Open& element = open_[at];
      bool is_alike = kind == Kind::LI ? element.kind == Kind::LI : element.kind == Kind::DD || element.kind == Kind::DT;
      if (is_alike && element.space == Space::HTML) {
        pop_to(at);
        break;
      }
      bool is_div = element.kind == Kind::BLOCK && element.hash == hashed("div");
      if (element.traits & SPECIAL && !is_div && element.kind != Kind::P && element.kind != Kind::ADDRESS) break;
    }
    close(Kind::P, 0, true);
    push(tag);
    return;
  }
  if (kind == Kind::FORM && count(Kind::FORM) && !count(Kind::TEMPLATE)) return;
  if (traits & CLOSES_P) close(Kind::P, 0, true);
  switch (kind) {
    case Kind::BASE: case Kind::LINK: case Kind::META: case Kind::TITLE: case Kind::IN_HEAD: case Kind::SCRIPT:
    case Kind::RAW: case Kind::NOFRAMES: case Kind::TEMPLATE:
      return start_in_head(tag);
    case Kind::A:
      end_formatting(Kind::A, tag.hash);
      found(tag);
      break;
    case Kind::AREA: return found(tag);
    case Kind::IFRAME:
      found(tag);
      raw("iframe");
      return;
    case Kind::TEXTAREA: case Kind::XMP: raw(tag.name.text); return;
    case Kind::PLAINTEXT: go(page_.size()); return;
    case Kind::HEADING:
      if (!open_.empty() && open_.back().kind == Kind::HEADING) pop();
      break;
    case Kind::BUTTON: close(Kind::BUTTON); break;
    case Kind::SELECT:
      if (close(Kind::SELECT)) return;
      break;
    case Kind::OPTGROUP: case Kind::OPTION:
      if (!open_.empty() && open_.back().kind == Kind::OPTION) pop();
      break;
    case Kind::SVG: case Kind::MATH:
      if (!tag.closes_itself) push(tag, kind == Kind::SVG ? Space::SVG : Space::MATH);
      return;
    default: break;
  }
  if (!(traits & IS_VOID)) push(tag);
}

void Page::end(const Tag& tag) {
  if (is_foreign() && end_foreign(tag)) return;
  Kind kind = tag.name.kind;
  if (kind == Kind::TEMPLATE) {
    if (!count(Kind::TEMPLATE)) return;
    while (open_.back().kind != Kind::TEMPLATE) pop();
    return pop();
  }
  if (phase_ != Phase::BODY && !count(Kind::TEMPLATE)) {
    bool opens = kind == Kind::HTML || kind == Kind::BODY || kind == Kind::BR || (kind == Kind::HEAD && phase_ == Phase::START);
    switch (phase_) {
      case Phase::FRAMESET:
        if (kind == Kind::FRAMESET && !open_.empty()) pop();
        if (open_.empty()) phase_ = Phase::AFTER_FRAMESET;
        return;
      case Phase::AFTER_FRAMESET: return;
      case Phase::NOSCRIPT_IN_HEAD:
        if (kind == Kind::NOSCRIPT || kind == Kind::BR) {
          pop_to(0);
          phase_ = Phase::HEAD;
        }
        if (kind != Kind::BR) return;
        break;
      default:
        if (kind == Kind::HEAD && phase_ != Phase::AFTER_HEAD) {
          phase_ = Phase::AFTER_HEAD;
          return;
        }
        if (!opens) return;
    }
    body_begins();
  }
  if (!end_in_table(tag)) end_in_body(tag);
}

// Whether the tag ended something here; else it is HTML's.
bool Page::end_foreign(const Tag& tag) {
  if (tag.name.kind == Kind::P || tag.name.kind == Kind::BR) {
    leave_foreign();
    return false;
  }
  size_t steps = 0;
  for (size_t at = open_.size(); at-- > 0 && steps++ < MAX_STEPS;) {
    if (open_[at].space == Space::HTML) return false;
    if (open_[at].hash == tag.hash) {
      pop_to(at);
      return true;
    }
  }
  return steps >= MAX_STEPS;
}

bool Page::end_in_table(const Tag& tag) {
  Kind kind = tag.name.kind;
  bool is_part = kind == Kind::CAPTION || kind == Kind::COLGROUP || kind == Kind::ROWS || kind == Kind::ROW || kind == Kind::CELL || kind == Kind::TABLE;
  if (kind == Kind::COL) return true;
  if (!is_part) {
    if (table_part() == Kind::COLGROUP && !parts_.empty()) {
      if (open_.back().kind != Kind::COLGROUP) return true;
      pop_part();
    }
    return false;
  }
  bool is_named = kind == Kind::ROWS || kind == Kind::CELL;
  if (!has_part(kind, is_named ? tag.hash : 0)) return true;
  if ((kind == Kind::ROWS || kind == Kind::ROW) && table_part() == Kind::CAPTION) return true;
  while (table_part() != kind) pop_part();
  pop_part();
  return true;
}

void Page::end_in_body(const Tag& tag) {
  Kind kind = tag.name.kind;
  switch (kind) {
    case Kind::HTML: case Kind::BODY: return;
    case Kind::BR: may_have_frames_ = false; return;
    case Kind::P: close(Kind::P, 0, true); return;
    case Kind::LI: close(Kind::LI, 0, false, true); return;
    case Kind::DD: case Kind::DT: case Kind::OBJECT: case Kind::BLOCK: case Kind::BUTTON: case Kind::SELECT:
    case Kind::ADDRESS: case Kind::PRE:
      close(kind, tag.hash);
      return;
    case Kind::HEADING: close(kind); return;
    case Kind::FORM: {
      size_t at = in_scope(kind, 0, false, false);
      if (at != NONE) remove(at);
      return;
    }
    case Kind::A: case Kind::FORMATTING: case Kind::FONT: end_formatting(kind, tag.hash); return;
    default: break;
  }
  size_t steps = 0;
  for (size_t at = open_.size(); at-- > 0 && steps++ < MAX_STEPS;) {
    const Open& element = open_[at];
    if (element.hash == tag.hash && element.space == Space::HTML) return pop_to(at);
    if (element.traits & SPECIAL) return;
  }
}

// --- what is kept ---

void Page::follow(const Attribute& href, const Attribute& rel) {
  if (!href.given) return;
  std::string buffer;
  if (flags_ & OBEY && rel.given && has_word(decoded(rel.value, buffer), "nofollow")) return;
  string_view address = href.value;
  size_t fragment = address.find('#');  // before the costly part: a table of contents is one address
  while (fragment != NONE && fragment > 0 && address[fragment - 1] == '&') fragment = address.find('#', fragment + 1);
  address = address.substr(0, fragment);
  if (!address.empty()) written_.add(address, links_);
}

void Page::found(Tag& tag) {
  Kind kind = tag.name.kind;
  bool hidden = count(Kind::TEMPLATE) > 0;
  std::string buffer;
  switch (kind) {
    case Kind::A: case Kind::AREA:
      if (!hidden) follow(tag.has.href, tag.has.rel);
      break;
    case Kind::FRAME:
      if (!hidden) follow(tag.has.src, tag.has.rel);
      break;
    case Kind::IFRAME:
      if (!hidden && flags_ & IFRAME) follow(tag.has.src, tag.has.rel);
      break;
    case Kind::TITLE: {
      if (is_foreign() && !open_.back().takes_html && !open_.back().takes_text) break;
      string_view title = raw("title");
      if (hidden || found_.has_title || count(Kind::SVG) || count(Kind::MATH)) break;
      found_.has_title = true;
      found_.title = title;
      break;
    }
    case Kind::BASE:
      if (hidden || !tag.has.href.given || found_.has_base) break;
      found_.has_base = true;
      found_.base = tag.has.href.value;
      break;
    case Kind::LINK: {
      if (hidden || !tag.has.href.given || !tag.has.rel.given) break;
      string_view rel = decoded(tag.has.rel.value, buffer);
      if (!found_.has_canonical && has_word(rel, "canonical")) {
        found_.has_canonical = true;
        found_.canonical = tag.has.href.value;
      }
      if (flags_ & NEXT && has_word(rel, "next")) follow(tag.has.href, tag.has.rel);
      break;
    }
    case Kind::META: {
      if (hidden) break;
      string_view name = stripped(decoded(tag.has.name.value, buffer));
      if (same(name, "robots") || same(name, agent_)) {
        metas_.push_back({'r', tag.has.content.value});
      } else if (!count(Kind::NOSCRIPT) && same(decoded(tag.has.http_equiv.value, buffer), "refresh")) {
        metas_.push_back({'f', tag.has.content.value});
      }
      break;
    }
    default: break;
  }
}

// Fields, each before a NUL: the title as written, the base and the canonical address, how many metas there are, the
// metas, the links until they have more than `most` bytes together, and how many that left out. A base may make two
// kilobytes of each byte that a page has of links. Links that `batch` has met from as near as `depth` are counted, and
// not said; the others are in `noted` as well. Batch 0 has met none.
void Page::answer(string_view url, size_t most, uint64_t batch, uint32_t depth, std::string& out,
                  std::vector<Noted>& noted) {
  std::string buffer, repaired, made;
  auto field = [&](string_view text) {
    out += text;
    out += '\0';
  };
  auto base = ada::parse<ada::url_aggregator>(url);
  if (base && found_.has_base && normalised(valid(decoded(found_.base, buffer), repaired), &*base, made))
    if (auto other = ada::parse<ada::url_aggregator>(made)) base = std::move(other), url = made;
  field(decoded(found_.title, buffer, false));
  std::string spelled;
  auto address = [&](string_view written) {  // its spelling; empty: it has none
    written = valid(written, repaired);
    if (flags_ & OTHER_ENCODING && !is_ascii(written)) spelled.assign("\1").append(written);
    else if (!base || !normalised(written, &*base, spelled)) spelled.clear();
  };
  field(url);
  if (found_.has_canonical) address(decoded(found_.canonical, buffer));
  field(spelled);
  field(std::to_string(metas_.size()));
  for (const Meta& meta : metas_) {
    out += meta.is;
    field(decoded(meta.content, buffer));
  }
  size_t taken = 0, left_out = 0;
  Context context(batch, flags_ & OTHER_ENCODING, base ? base->get_href() : string_view());
  for (const Link& written : links_) {
    uint64_t key = context.key(written);
    if (size_t size = batch ? met.size(key, depth) : NONE; size != NONE) {
      if (taken > most) ++left_out;
      else taken += size;
      continue;
    }
    string_view link = decoded(written.written, buffer);
    link = link.substr(0, link.find('#'));
    if (link.empty() || link.starts_with("javascript:") || link.starts_with("mailto:") || link.starts_with("tel:") ||
        link.starts_with("data:"))
      continue;
    if (taken > most) {
      ++left_out;
      continue;
    }
    address(link);
    if (!spelled.empty()) field(spelled);
    taken += spelled.size();
    if (batch && !spelled.starts_with('\1')) noted.push_back({key, depth, static_cast<uint32_t>(spelled.size())});
  }
  field(std::to_string(left_out));
}

thread_local std::string answered;
thread_local std::vector<Noted> noted;

struct Answer {
  const char* text;
  size_t text_size;
  const void* noted;
  size_t noted_size;
};

}  // namespace

#define SHOWN extern "C" __attribute__((visibility("default")))

// A secret of this process, for the hash of addresses.
SHOWN void crawler_scanner_key(uint64_t first, uint64_t second) {
  KeyedHash::key[0] = first;
  KeyedHash::key[1] = second;
}

// Reads `page` (UTF-8, or nearly) that came from `url`. `agent` is a product token in lower case. What is in `answer`
// (see Page::answer) stays there until this thread calls again, or crawler_scanner_forget.
SHOWN void crawler_scanner_scan(const char* page, size_t page_size, const char* url, size_t url_size, const char* agent,
                                size_t agent_size, unsigned flags, size_t most, uint64_t batch, uint32_t depth,
                                Answer* answer) {
  answered.clear();
  noted.clear();
  Page scanned({page, page_size}, {agent, agent_size}, flags);
  scanned.read();
  scanned.answer({url, url_size}, most, batch, depth, answered, noted);
  *answer = {answered.data(), answered.size(), noted.data(), noted.size() * sizeof(Noted)};
}

// From here on the links that an Answer noted are met.
SHOWN void crawler_scanner_met(const char* links, size_t size) {
  for (string_view left(links, size); left.size() >= sizeof(Noted); left.remove_prefix(sizeof(Noted))) {
    Noted link;
    std::memcpy(&link, left.data(), sizeof(Noted));
    met.add(link);
  }
}

// Gives back the memory of a large answer.
SHOWN void crawler_scanner_forget() {
  if (answered.capacity() > KEPT) std::string().swap(answered);
  if (noted.capacity() * sizeof(Noted) > KEPT) std::vector<Noted>().swap(noted);
}
