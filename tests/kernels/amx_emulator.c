// AMX-BF16 for a CPU without it: loaded before a program (LD_PRELOAD), it computes each tile instruction that
// the CPU refuses, from its bytes. What runs is the code as it was compiled, so that encodings, registers and
// the order of configuration are tried too. Anything a CPU with AMX would refuse ends the program.
//
// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TILESTORED,
// TILEZERO, TILERELEASE, TDPBF16PS.
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

enum { kTiles = 8, kRows = 16, kBytes = 64, kWords = kBytes / 4 };

// As LDTILECFG reads it.
struct TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

struct TileState {
  struct TileConfig config;  // palette 0: not configured
  unsigned char bytes[kTiles][kRows][kBytes];
};
static __thread struct TileState state __attribute__((tls_model("initial-exec")));
static long products;

static void refuse(const char* why) {
  static const char kBegin[] = "amx_emulator: ";
  (void)!write(2, kBegin, sizeof(kBegin) - 1);
  (void)!write(2, why, strlen(why));
  (void)!write(2, "\n", 1);
  abort();
}

static const greg_t kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                      REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

struct Instruction {
  int prefix;  // pp of VEX: 0 none, 1 66, 2 F3, 3 F2
  int opcode, mod, reg, rm, vvvv;
  uintptr_t address;  // of the memory operand
  int64_t stride;     // the index register: bytes between rows
  int length;
};

// ModRM, SIB and displacement of the memory operand.
static void decode_memory(struct Instruction* in, const uint8_t* code, const greg_t* regs, int x, int b) {
  const uint8_t* at = code + 5;
  int64_t base = 0;
  in->stride = 0;
  if (in->rm == 4) {
    const int sib = *at++, index = (sib >> 3 & 7) | x << 3, low = sib & 7;
    if (index != 4) in->stride = (int64_t)regs[kRegisters[index]] << (sib >> 6);
    if (low == 5 && in->mod == 0) refuse("an operand without a base register");
    base = regs[kRegisters[low | b << 3]];
  } else {
    if (in->opcode == 0x4b) refuse("a tile's memory operand needs a SIB byte");
    if (in->rm == 5 && in->mod == 0) {  // relative to the next instruction
      int32_t offset;
      memcpy(&offset, at, 4);
      in->length = (int)(at + 4 - code);
      in->address = (uintptr_t)code + (uintptr_t)in->length + (uintptr_t)(int64_t)offset;
      return;
    }
    base = regs[kRegisters[in->rm | b << 3]];
  }
  if (in->mod == 1) {
    base += (int8_t)*at;
    at += 1;
  } else if (in->mod == 2) {
    int32_t offset;
    memcpy(&offset, at, 4);
    base += offset;
    at += 4;
  }
  in->address = (uintptr_t)base;
  in->length = (int)(at - code);
}

static int decode(struct Instruction* in, const uint8_t* code, const greg_t* regs) {
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2) return 0;   // three bytes of VEX, map 0F38
  if ((code[2] & 0x84) != 0 || !(code[1] & 0x80)) return 0;  // W0, L0, tiles 0 to 7
  in->prefix = code[2] & 3;
  in->vvvv = ~(code[2] >> 3) & 15;
  in->opcode = code[3];
  in->mod = code[4] >> 6;
  in->reg = code[4] >> 3 & 7;
  in->rm = code[4] & 7;
  in->length = 5;
  if (in->mod != 3) decode_memory(in, code, regs, !(code[1] & 0x40), !(code[1] & 0x20));
  return in->opcode == 0x49 || in->opcode == 0x4b || in->opcode == 0x5c;
}

static void configure(const void* from) {
  struct TileConfig config;
  memcpy(&config, from, sizeof(config));
  if (config.palette != 1) refuse("ldtilecfg: the palette is not 1");
  if (config.start_row != 0) refuse("ldtilecfg: a start row");
  for (int i = 0; i < 14; ++i)
    if (config.reserved[i]) refuse("ldtilecfg: a reserved byte is not zero");
  for (int t = 0; t < 16; ++t) {
    if (t >= kTiles && (config.rows[t] || config.row_bytes[t])) refuse("ldtilecfg: more than eight tiles");
    if (config.rows[t] > kRows || config.row_bytes[t] > kBytes) refuse("ldtilecfg: a tile is too large");
    if (!config.rows[t] != !config.row_bytes[t]) refuse("ldtilecfg: a tile of rows without bytes");
  }
  memset(&state, 0, sizeof(state));
  state.config = config;
}

static void need_tile(int t) {
  if (state.config.palette == 0) refuse("a tile instruction before ldtilecfg");
  if (state.config.rows[t] == 0) refuse("a tile that is not configured");
}

static void load(const struct Instruction* in) {
  need_tile(in->reg);
  memset(state.bytes[in->reg], 0, sizeof(state.bytes[0]));
  for (int r = 0; r < state.config.rows[in->reg]; ++r)
    memcpy(state.bytes[in->reg][r], (const char*)in->address + r * in->stride,
           state.config.row_bytes[in->reg]);
}

static void store(const struct Instruction* in) {
  need_tile(in->reg);
  for (int r = 0; r < state.config.rows[in->reg]; ++r)
    memcpy((char*)in->address + r * in->stride, state.bytes[in->reg][r], state.config.row_bytes[in->reg]);
}

// A value of bfloat16 as the instruction reads it: denormal values are zero.
static float widened(uint32_t bits) {
  float x;
  if ((bits & 0x7f800000u) == 0) bits &= 0x80000000u;
  memcpy(&x, &bits, 4);
  return x;
}

// Sums of the even and of the odd positions first, as the manual has it.
static void multiply(int c, int a, int b) {
  if (c == a || c == b || a == b) refuse("tdpbf16ps: the same tile twice");
  need_tile(c), need_tile(a), need_tile(b);
  const struct TileConfig* f = &state.config;
  const int depth = f->row_bytes[a] / 4;
  if (f->rows[c] != f->rows[a] || f->row_bytes[c] != f->row_bytes[b] || f->rows[b] != depth)
    refuse("tdpbf16ps: the tiles' sizes do not fit");
  float even_b[kRows][kWords], odd_b[kRows][kWords];
  for (int k = 0; k < depth; ++k)
    for (int n = 0; n < kWords; ++n) {
      uint32_t pair;
      memcpy(&pair, state.bytes[b][k] + 4 * n, 4);
      even_b[k][n] = widened(pair << 16);
      odd_b[k][n] = widened(pair & 0xffff0000u);
    }
  for (int m = 0; m < f->rows[c]; ++m) {
    float even[kWords] = {0}, odd[kWords] = {0}, sum[kWords];
    for (int k = 0; k < depth; ++k) {
      uint32_t pair;
      memcpy(&pair, state.bytes[a][m] + 4 * k, 4);
      const float even_a = widened(pair << 16), odd_a = widened(pair & 0xffff0000u);
      for (int n = 0; n < kWords; ++n) even[n] += even_a * even_b[k][n];
      for (int n = 0; n < kWords; ++n) odd[n] += odd_a * odd_b[k][n];
    }
    memcpy(sum, state.bytes[c][m], kBytes);
    for (int n = 0; n < kWords; ++n) sum[n] += even[n] + odd[n];
    memcpy(state.bytes[c][m], sum, f->row_bytes[c]);
  }
  __atomic_fetch_add(&products, 1, __ATOMIC_RELAXED);
}

static int execute(const struct Instruction* in) {
  if (in->opcode == 0x5c) {
    if (in->prefix != 2 || in->mod != 3) return 0;
    multiply(in->reg, in->rm, in->vvvv);
  } else if (in->opcode == 0x4b) {
    if (in->mod == 3 || in->prefix == 0) return 0;
    in->prefix == 2 ? store(in) : load(in);
  } else if (in->prefix == 0 && in->mod == 3) {
    memset(&state, 0, sizeof(state));
  } else if (in->prefix == 0) {
    configure((const void*)in->address);
  } else if (in->prefix == 3 && in->mod == 3) {
    need_tile(in->reg);
    memset(state.bytes[in->reg], 0, sizeof(state.bytes[0]));
  } else {
    return 0;
  }
  return 1;
}

static void on_illegal(int number, siginfo_t* info, void* context) {
  (void)number, (void)info;
  greg_t* regs = ((ucontext_t*)context)->uc_mcontext.gregs;
  const uint8_t* code = (const uint8_t*)regs[REG_RIP];
  struct Instruction in = {0};
  if (!decode(&in, code, regs) || !execute(&in)) refuse("an illegal instruction that is none of AMX-BF16's");
  regs[REG_RIP] += in.length;
}

__attribute__((constructor)) static void begin(void) {
  struct sigaction action = {0};
  action.sa_sigaction = on_illegal;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  sigaction(SIGILL, &action, NULL);
}

// How many tdpbf16ps were computed.
long amx_emulator_products(void) { return __atomic_load_n(&products, __ATOMIC_RELAXED); }
