// Compares declarations of the same function in our headers and in a vendor's, by what a compiled caller relies on.
#pragma once

#include <type_traits>

namespace edge::test {

// The same to a caller: equal numbers, enumerations, pointers to things alike, functions of alike things.
template <class A, class B>
struct Alike : std::bool_constant<(std::is_enum_v<A> && std::is_enum_v<B>) ||
                                  (std::is_class_v<A> && std::is_class_v<B>) || std::is_same_v<A, B>> {};

template <class A, class B>
struct Alike<A*, B*> : std::bool_constant<std::is_const_v<A> == std::is_const_v<B> &&
                                          Alike<std::remove_cv_t<A>, std::remove_cv_t<B>>::value> {};

template <class A, class B>
struct Alike<A&, B&> : Alike<A*, B*> {};

template <class Official, class Ours>
struct Functions : std::false_type {};

template <class A, class... As, class B, class... Bs>
struct Functions<A(As...), B(Bs...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(As) == sizeof...(Bs)) {
      return Alike<A, B>::value && (... && Alike<As, Bs>::value);
    } else {
      return false;
    }
  }();
};

template <class F>
struct Plain;
template <class A, class... As>
struct Plain<A (*)(As...)> {
  using type = A(As...);
};
template <class A, class... As>
struct Plain<A (*)(As...) noexcept> {
  using type = A(As...);
};
template <class C, class A, class... As>
struct Plain<A (C::*)(As...)> {
  using type = A(As...);
};
template <class C, class A, class... As>
struct Plain<A (C::*)(As...) noexcept> {
  using type = A(As...);
};
template <class C, class A, class... As>
struct Plain<A (C::*)(As...) const> {
  using type = A(As...);
};
template <class C, class A, class... As>
struct Plain<A (C::*)(As...) const noexcept> {
  using type = A(As...);
};

template <class Official, class Ours>
constexpr bool alike = Functions<typename Plain<Official>::type, typename Plain<Ours>::type>::value;

}  // namespace edge::test
