/* A clock that jumps: preloaded (LD_PRELOAD) into the processes of a sweep, it moves what they read of the wall clock.
 *
 * $PHAROS_CLOCK names a file of eight bytes, the nanoseconds to add, which all processes map: writing to it lets the
 * clock jump in all of them at once. Moved are clock_gettime (CLOCK_REALTIME, also as _COARSE), gettimeofday and time;
 * deadlines on that clock, which programs compute from it, are moved back before the kernel sees them. The monotonic
 * clock stands, as it does when a machine's clock is set. Not moved: the times that a file system gives its files.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static const int64_t none = 0;
static const volatile int64_t *jump = &none;

__attribute__((constructor)) static void open_clock(void) {
  const char *path = getenv("PHAROS_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0)
    return;
  void *mapped = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED)
    jump = mapped;
  close(file);
}

static void move(struct timespec *time, int64_t by) {
  int64_t at = time->tv_sec * SECOND + time->tv_nsec + by;
  time->tv_sec = at / SECOND;
  time->tv_nsec = at % SECOND;
}

/* A deadline as the kernel is to see it; one that is long past stays as it is. */
static const struct timespec *back(const struct timespec *deadline, struct timespec *moved) {
  if (deadline == NULL || *jump == 0 || deadline->tv_sec * SECOND < *jump)
    return deadline;
  *moved = *deadline;
  move(moved, -*jump);
  return moved;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int clock_gettime(clockid_t clock, struct timespec *now) {
  static __typeof__(&clock_gettime) real;
  if (!real)
    real = NEXT(clock_gettime);
  int failed = real(clock, now);
  if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    move(now, *jump);
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec time;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &time);
  now->tv_sec = time.tv_sec;
  now->tv_usec = time.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *now) {
  struct timespec time;
  clock_gettime(CLOCK_REALTIME, &time);
  if (now)
    *now = time.tv_sec;
  return time.tv_sec;
}

/* Whether a condition variable's deadline is on the wall clock: the monotonic one counts from the start of the machine. */
static int is_wall(const struct timespec *deadline) { return deadline && deadline->tv_sec > 1000000000; }

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *deadline) {
  static __typeof__(&pthread_cond_timedwait) real;
  struct timespec moved;
  if (!real) /* where a machine has an older one too, that would be found first */
    real = (__typeof__(real))dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
  if (!real)
    real = NEXT(pthread_cond_timedwait);
  return real(condition, mutex, is_wall(deadline) ? back(deadline, &moved) : deadline);
}

int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock,
                           const struct timespec *deadline) {
  static __typeof__(&pthread_cond_clockwait) real;
  struct timespec moved;
  if (!real)
    real = NEXT(pthread_cond_clockwait);
  return real(condition, mutex, clock, clock == CLOCK_REALTIME ? back(deadline, &moved) : deadline);
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *deadline) {
  static __typeof__(&pthread_mutex_timedlock) real;
  struct timespec moved;
  if (!real)
    real = NEXT(pthread_mutex_timedlock);
  return real(mutex, back(deadline, &moved));
}

int sem_timedwait(sem_t *semaphore, const struct timespec *deadline) {
  static __typeof__(&sem_timedwait) real;
  struct timespec moved;
  if (!real)
    real = NEXT(sem_timedwait);
  return real(semaphore, back(deadline, &moved));
}

/* Abseil, which Ray is built on, waits with this. */
long syscall(long number, ...) {
  static long (*real)(long, long, long, long, long, long, long);
  long a[6];
  __builtin_va_list list;
  __builtin_va_start(list, number);
  for (int i = 0; i < 6; i++)
    a[i] = __builtin_va_arg(list, long);
  __builtin_va_end(list);
  if (!real)
    real = (__typeof__(real))dlsym(RTLD_NEXT, "syscall");
  struct timespec moved;
  if (number == SYS_futex && a[3] && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && (a[1] & FUTEX_CLOCK_REALTIME))
    a[3] = (long)back((const struct timespec *)a[3], &moved);
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
