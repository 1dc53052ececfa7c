/* A microcontroller to try edge_frames.h with, on a computer: motors that turn as fast as they are told.
 *
 *   cc -std=c99 -Wall -Wextra -Werror -pedantic simulator.c -o simulator
 *   ./simulator TTY SCHEMA_HASH ACTION_DIM HEARTBEAT_LIMIT_MS
 *
 * The action is a velocity for each motor, the observation each motor's position and then its velocity. Says on stdout
 * what moves the motors (`command` and the values' bits), and when they start and stop, by its own clock in
 * milliseconds.
 */
#define _XOPEN_SOURCE 600
#define _DEFAULT_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#include "edge_frames.h"

#define OBSERVE_EVERY_MS 5u

static uint32_t millis(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  /* Starts shortly before it wraps, so that wrapping is tried each time. */
  static uint64_t start_ms;
  const uint64_t ms = (uint64_t)now.tv_sec * 1000u + (uint64_t)now.tv_nsec / 1000000u;
  if (!start_ms) start_ms = ms;
  return (uint32_t)(0xFFFFFC00u + ms - start_ms);
}

static int open_raw(const char *path) {
  struct termios mode;
  const int tty = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK);
  if (tty < 0 || tcgetattr(tty, &mode) != 0) return -1;
  mode.c_iflag = mode.c_oflag = mode.c_lflag = 0;
  mode.c_cflag = CS8 | CREAD | CLOCAL;
  return tcsetattr(tty, TCSANOW, &mode) == 0 ? tty : -1;
}

/* A frame that the line has no room for is lost, as with a full UART buffer. */
static void transmit(int tty, const uint8_t *wire, size_t count) {
  if (count && write(tty, wire, count) < 0) return;
}

static void say_command(const edge_link *link) {
  printf("command");
  for (uint16_t i = 0; i < link->action_dim; i++) {
    uint32_t bits;
    memcpy(&bits, &link->action[i], sizeof bits);
    printf(" %08lx", (unsigned long)bits);
  }
  printf("\n");
}

int main(int count, char **words) {
  static edge_link link;
  float sensors[2 * EDGE_MAX_ACTION] = {0};
  uint8_t wire[EDGE_MAX_WIRE], received[256];
  int tty, moving = 0;
  if (count != 5 || (tty = open_raw(words[1])) < 0) {
    fprintf(stderr, "usage: simulator TTY SCHEMA_HASH ACTION_DIM HEARTBEAT_LIMIT_MS\n");
    return 2;
  }
  const uint16_t dim = (uint16_t)atoi(words[3]);
  if (dim > EDGE_MAX_ACTION) return 2;
  edge_link_start(&link, strtoull(words[2], NULL, 0), dim, (uint16_t)(2 * dim), (uint16_t)atoi(words[4]));
  setvbuf(stdout, NULL, _IOLBF, 0);
  printf("ready %lu\n", (unsigned long)millis());

  for (uint32_t before_ms = millis(), observed_ms = before_ms;;) {
    struct pollfd ready = {tty, POLLIN, 0};
    poll(&ready, 1, 1);
    const ssize_t n = read(tty, received, sizeof received);
    const uint32_t now_ms = millis();
    for (ssize_t i = 0; i < n; i++) {
      const uint32_t commands = link.commands;
      edge_link_receive(&link, received[i], now_ms);
      if (link.commands != commands) say_command(&link);
    }

    const float *action = edge_link_action(&link, now_ms);
    for (uint16_t i = 0; i < dim; i++) {
      sensors[dim + i] = action ? action[i] : 0.0f;
      sensors[i] += sensors[dim + i] * (float)(now_ms - before_ms) * 1e-3f;
    }
    if ((action != NULL) != moving) {
      moving = action != NULL;
      printf("%s %lu heard %lu state %d\n", moving ? "moving" : "still", (unsigned long)now_ms,
             (unsigned long)link.valid_at_ms, (int)link.state);
    }
    before_ms = now_ms;

    transmit(tty, wire, edge_link_reply(&link, now_ms, wire));
    if (now_ms - observed_ms >= OBSERVE_EVERY_MS) {
      observed_ms = now_ms;
      transmit(tty, wire, edge_link_observation(&link, now_ms, sensors, wire));
    }
  }
}
